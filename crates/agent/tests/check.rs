//! `sterna host check` on the machine that runs the tests.

use sterna_agent::check::{Level, Options, run, verdict};

#[tokio::test]
async fn every_finding_that_is_not_ok_says_what_to_do() {
    let options =
        Options { peers: vec!["127.0.0.1".parse().unwrap()], clock_ahead_ms: Some(10), ..Options::default() };
    let findings = run(&options).await;
    for finding in &findings {
        assert_eq!(finding.fix.is_some(), finding.level != Level::Ok, "{finding:?}");
        assert!(!finding.found.is_empty(), "{finding:?}");
    }
    for what in
        ["qemu", "guests", "cpu", "clock", "boot", "networks", "taps", "firewall", "disk", "host 127.0.0.1"]
    {
        assert!(findings.iter().any(|finding| finding.what == what), "nothing about {what}: {findings:#?}");
    }
    assert_eq!(verdict(&[]), Level::Ok);
    assert_eq!(verdict(&findings), findings.iter().map(|finding| finding.level).max().unwrap());
}

#[tokio::test]
async fn a_missing_qemu_is_refused() {
    let options = Options { qemu: "no-such-qemu".into(), ..Options::default() };
    let findings = run(&options).await;
    let qemu = findings.iter().find(|finding| finding.what == "qemu").unwrap();
    assert_eq!(qemu.level, Level::Refuse);
    assert!(qemu.found.contains("no-such-qemu"), "{}", qemu.found);
}
