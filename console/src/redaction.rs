//! Nothing that looks like a secret is printed in an error (DESIGN §3).
//!
//! A sturdyref that stands in a wrong place on a command line would be repeated by whoever complains about it:
//! the parser of arguments, a lookup by name, an object. So every failure passes through here.

/// Letters and digits in one run that are too many for an id (52): a secret, or something that hides one.
const LONGEST_RUN: usize = 52;

/// The text without what may be secret: letters and digits behind a `#`, and runs of them longer than an id.
pub(crate) fn redacted(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
        let run = &rest[start..];
        let length = run.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(run.len());
        safe.push_str(&rest[..start]);
        let is_secret = length > LONGEST_RUN || rest[..start].ends_with('#');
        safe.push_str(if is_secret { "(not shown)" } else { &run[..length] });
        rest = &run[length..];
    }
    safe + rest
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        let id = "y".repeat(52);
        let secret = "b".repeat(58);
        let text = format!("vat://{id}#{secret}?x, {secret}, # not 'a#b' and é#ü");
        let shown = format!("vat://{id}#(not shown)?x, (not shown), # not 'a#(not shown)' and é#ü");
        assert_eq!(redacted(&text), shown);
        assert_eq!(redacted(""), "");
    }
}
