//! The URLs of gateways: `https://host[:port][/path]`, a small and strict part of RFC 3986.
//!
//! No user, no query and no fragment: whoever uses such a URL appends to its path, and nothing secret may
//! ever stand in one (DESIGN §3). The canonical text has the host in lower case, no port 443, percent
//! escapes with upper-case digits, and no slash at its end.

use crate::{
    host::{HostPort, parse_host, parse_port},
    limits::MAX_URL,
};

/// Some text is not the URL of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not an https URL of a host with an optional port and path, without user, query and fragment")]
pub struct UrlError;

/// The scheme of every gateway.
pub(crate) const SCHEME: &str = "https://";

const DEFAULT_PORT: u16 = 443;

/// Reads the URL of a gateway; gives its canonical text.
pub(crate) fn parse_url(text: &str) -> Result<String, UrlError> {
    if text.len() > MAX_URL {
        return Err(UrlError);
    }
    let rest = text.strip_prefix(SCHEME).ok_or(UrlError)?;
    let (authority, path) = match rest.find('/') {
        Some(start) => rest.split_at(start),
        None => (rest, ""),
    };
    let mut url = String::with_capacity(text.len());
    url.push_str(SCHEME);
    url.push_str(&parse_authority(authority)?);
    if !path.trim_end_matches('/').is_empty() {
        push_path(&mut url, path)?;
    } else if path.len() > 1 {
        return Err(UrlError);
    }
    Ok(url)
}

fn parse_authority(text: &str) -> Result<String, UrlError> {
    // The port begins at the last colon, unless that colon is inside the brackets of an IPv6 address.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, parse_port(port).map_err(|_| UrlError)?),
        _ => (text, DEFAULT_PORT),
    };
    let host = parse_host(host).map_err(|_| UrlError)?;
    Ok(match port {
        DEFAULT_PORT if host.contains(':') => format!("[{host}]"),
        DEFAULT_PORT => host,
        _ => HostPort(&host, port).to_string(),
    })
}

/// Appends a path of non-empty segments; one slash at its end is dropped.
fn push_path(url: &mut String, path: &str) -> Result<(), UrlError> {
    for segment in path.strip_suffix('/').unwrap_or(path).split('/').skip(1) {
        if matches!(segment, "" | "." | "..") {
            return Err(UrlError);
        }
        url.push('/');
        let mut bytes = segment.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => {
                    url.push('%');
                    for _ in 0..2 {
                        let digit = bytes.next().filter(u8::is_ascii_hexdigit).ok_or(UrlError)?;
                        url.push(char::from(digit.to_ascii_uppercase()));
                    }
                }
                // `pchar` of RFC 3986, without the percent sign.
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => url.push(char::from(byte)),
                _ if b"-._~!$&'()*+,;=:@".contains(&byte) => url.push(char::from(byte)),
                _ => return Err(UrlError),
            }
        }
    }
    Ok(())
}
