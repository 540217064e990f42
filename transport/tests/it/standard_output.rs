//! Standard output belongs to the program.

/// capnp-rpc prints some errors with `println!`, which would destroy the answer of a CGI program. The attacks
/// and the honest tests are run once more, with their standard output caught.
#[test]
fn nothing_of_the_rpc_layer_reaches_standard_output() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "capabilities::",
            "calls::",
            "deadlines::",
            "exhaustion::",
            "gate::",
            "greetings::",
            "hostile::",
            "pipelines::",
            "unsupported::",
            "--nocapture",
            // They wait more than they work.
            "--test-threads=4",
            "--skip",
            "standard_output",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let foreign: Vec<&str> = text
        .lines()
        .filter(|line| !(line.is_empty() || line.starts_with("test ") || line.starts_with("running ")))
        .collect();
    assert_eq!(foreign, [""; 0]);
}
