//! `sterna host check`: can this machine be a host, and what is to be mended? Changes nothing.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use sterna_agent::check::{Finding, Level, Options, run, verdict};
use sterna_agent::config::Config;
use sterna_cli::exit::Failure;
use sterna_cli::machine::CheckArgs;
use sterna_cli::{Format, Global, Terminal, table, text};

use crate::config;

/// A finding as programs see it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    level: &'static str,
    what: &'a str,
    found: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<&'a str>,
}

pub async fn check(args: &CheckArgs, global: &Global, terminal: &Terminal) -> Result<()> {
    let findings = run(&options(args)?).await;
    let shown = match global.output {
        Format::Table => people(&findings, terminal),
        format => text(format, &findings.iter().map(line).collect::<Vec<_>>())?,
    };
    terminal.data(&shown)?;
    match verdict(&findings) {
        Level::Ok => {
            terminal.talk("this machine can be a host");
            Ok(())
        }
        Level::Warn => {
            terminal.talk("this machine can be a host, with the limits above");
            Ok(())
        }
        Level::Refuse => {
            Err(Failure::failed("this machine cannot be a host yet", "mend what is refused above").into())
        }
    }
}

/// What is asked for on the command line, and what the settings say where this machine is a host already.
fn options(args: &CheckArgs) -> Result<Options> {
    let usual = PathBuf::from(config::AGENT);
    let settings = args.settings.clone().or_else(|| usual.exists().then_some(usual));
    let mut options =
        Options { peers: args.peers.clone(), server: args.server.clone(), ..Options::default() };
    if let Some(path) = settings {
        let agent = Config::read(&path)?;
        options.server = options.server.or(Some(agent.server));
        options.qemu = agent.qemu;
        options.data_dir = agent.data_dir;
    }
    Ok(options)
}

fn line(finding: &Finding) -> Line<'_> {
    let Finding { level, what, found, fix } = finding;
    Line { level: level.as_str(), what, found, fix: fix.as_deref() }
}

/// What to do stands below the table: a sentence does not fit a column.
fn people(findings: &[Finding], terminal: &Terminal) -> String {
    let row = |finding: &Finding| {
        vec![finding.level.as_str().to_owned(), finding.what.clone(), finding.found.clone()]
    };
    let mut shown = table(&["", "what", "found"], findings.iter().map(row).collect(), terminal.width);
    let fixes = findings.iter().filter_map(|finding| Some((finding, finding.fix.as_deref()?)));
    let fixes: String = fixes.map(|(finding, fix)| format!("{}: {fix}\n", finding.what)).collect();
    if !fixes.is_empty() {
        shown.push_str("\nTo mend:\n");
        shown.push_str(&fixes);
    }
    shown
}
