//! Moving a running VM, and what it took.

use std::time::Duration;

use clap::{Args, Subcommand};
use sterna_base::units::{Bytes, Span};
use sterna_client::migration::{Migration, Migrations, has_ended, progress};
use sterna_client::operation::Operation;
use sterna_model::forecast::{Confidence, Forecast, Past, Verdict, enough};
use sterna_model::meta::Name;
use sterna_model::migration::{Outcome, Phase, Progress};

use crate::Format;
use crate::crud;
use crate::exit::Result;
use crate::migration_test;
use crate::output::{Listed, table};
use crate::readable::{age, size, span};
use crate::select::Selector;
use crate::session::Session;
use crate::wait::{Talker, Wait};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List moves, past and present
    List(Selector),
    /// Show one move with forecast and measurement
    Show(Show),
    /// Stop a move; the VM stays where it runs
    Cancel {
        name: Name,
        #[command(flatten)]
        wait: Wait,
    },
    /// Check an installation: make a small VM, move it live between two hosts, remove it
    Test(migration_test::Test),
}

#[derive(Debug, Args)]
pub struct Show {
    name: Name,
}

impl Listed for Migration {
    const WORDS: &'static str = "migrations";
    const HEAD: &'static [&'static str] =
        &["name", "vm", "from", "to", "phase", "age", "took", "guest paused", "gap", "sent"];

    fn row(&self) -> Vec<String> {
        let mut row = vec![self.meta.name.to_string(), self.spec.vm.to_string()];
        let Some(decision) = &self.decision else {
            let to = self.spec.to.as_ref().map(Name::to_string).unwrap_or_default();
            row.extend([String::new(), to, "pending".to_owned(), age(self.meta.created)]);
            return row;
        };
        let name = |name: &Option<Name>| name.as_ref().map(Name::to_string).unwrap_or_default();
        let measured = |value: Option<Span>| value.map(span).unwrap_or_default();
        row.extend([name(&decision.source), name(&decision.target), decision.phase.word().to_owned()]);
        row.push(age(decision.started));
        if let Some(outcome) = &decision.outcome {
            row.extend([measured(outcome.total), measured(outcome.downtime), measured(outcome.gap)]);
            row.push(size(outcome.bytes));
        }
        row
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::List(selector) => crud::list::<Migrations>(session, &selector).await,
        Verb::Show(Show { name }) if session.format == Format::Table => report(session, &name).await,
        Verb::Show(Show { name }) => crud::show::<Migrations>(session, &name).await,
        Verb::Cancel { name, wait } => {
            let answer = session.client.migrations().cancel(&name).await?;
            crud::finish(session, wait, &format!("migration {name}"), "is being cancelled", answer).await
        }
        Verb::Test(args) => migration_test::run(session, &args).await,
    }
}

/// How often the numbers of a running transfer are asked for.
const LOOK: Duration = Duration::from_millis(250);

/// Waits for the end of a migration's operation and shows its progress meanwhile.
pub async fn watch(session: &Session, migration: &Name, operation: &Name) -> Result<Operation> {
    let talker = Talker::new(session);
    let operations = session.client.operations();
    let ended = operations.wait(operation);
    tokio::pin!(ended);
    loop {
        tokio::select! {
            operation = &mut ended => return Ok(operation?),
            () = tokio::time::sleep(LOOK) => {
                // Only for the bar: what ends the wait is the answer above.
                if let Ok(now) = session.client.migrations().get(migration).await {
                    tell(&talker, &now);
                }
            }
        }
    }
}

fn tell(talker: &Talker<'_>, migration: &Migration) {
    let vm = &migration.spec.vm;
    let phase = migration.decision.as_ref().map_or("pending", |decision| decision.phase.word());
    match progress(migration) {
        Some(numbers) if phase == "copying" && talker.is_person() => {
            let done = numbers.total.as_u64().saturating_sub(numbers.remaining.as_u64());
            talker.fraction(done, numbers.total.as_u64().max(1));
            talker.say(&format!("vm {vm}: {phase}  {}", numbers_text(&numbers)));
        }
        _ => talker.say(&format!("vm {vm}: {phase}")),
    }
}

/// Bytes left, how fast the guest writes, how fast it is sent, and when it may be done.
pub fn numbers_text(numbers: &Progress) -> String {
    let rate = |bytes: Bytes| format!("{}/s", size(bytes));
    let mut text = format!(
        "left {}, dirty {}, sent {}",
        size(numbers.remaining),
        rate(numbers.dirty_rate),
        rate(numbers.send_rate)
    );
    if let Some(eta) = numbers.eta {
        text.push_str(&format!(", ETA {}", span(eta)));
    }
    if numbers.throttle > 0 {
        text.push_str(&format!(", guest slowed by {} %", numbers.throttle));
    }
    if let Some(slowed) = numbers.slowed {
        text.push_str(&format!(", guest's writes wait up to {}", span(slowed)));
    }
    text
}

/// Forecast and measurement side by side, in plain words.
pub async fn report(session: &Session, name: &Name) -> Result<()> {
    let migration = session.client.migrations().get(name).await?;
    session.terminal.data(&report_text(&migration, session.terminal.width))
}

pub fn report_text(migration: &Migration, width: Option<u16>) -> String {
    let Some(decision) = &migration.decision else {
        return format!("vm {} waits to be moved.\n", migration.spec.vm);
    };
    let name = |name: &Option<Name>| name.as_ref().map_or("?".to_owned(), Name::to_string);
    let (from, to) = (name(&decision.source), name(&decision.target));
    let vm = &migration.spec.vm;
    let mut text = match &decision.phase {
        Phase::Succeeded if migration.spec.seed => {
            format!(
                "the volumes of vm {vm} were copied from host {from} to host {to}; it stays on host {from}.\n"
            )
        }
        Phase::Succeeded => format!("vm {vm} moved from host {from} to host {to} while it ran.\n"),
        Phase::Failed { why } => {
            format!("vm {vm} was not moved from host {from} to host {to}: {why}. It stays.\n")
        }
        Phase::Cancelled => {
            format!("vm {vm} was not moved: the move was cancelled. It stays on host {from}.\n")
        }
        phase => format!("vm {vm} moves from host {from} to host {to}: {}.\n", phase.word()),
    };
    let head = ["", "forecast", "measured"];
    let rows = rows(migration.spec.forecast.as_ref(), decision.outcome.as_ref());
    if !rows.is_empty() {
        text.push_str(&table(&head, rows, width));
    }
    if !has_ended(migration)
        && let Some(numbers) = progress(migration)
    {
        text.push_str(&format!("{}\n", numbers_text(&numbers)));
    }
    text
}

fn rows(forecast: Option<&Forecast>, outcome: Option<&Outcome>) -> Vec<Vec<String>> {
    if forecast.is_none() && outcome.is_none() {
        return Vec::new();
    }
    let expected = |value: fn(&Forecast) -> String| forecast.map(value).unwrap_or_default();
    let measured = |value: fn(&Outcome) -> Option<String>| outcome.and_then(value).unwrap_or_default();
    let mut rows = vec![
        vec!["duration".to_owned(), expected(|f| span(f.total)), measured(|o| o.total.map(span))],
        vec!["guest paused".to_owned(), expected(|f| span(f.downtime)), measured(|o| o.downtime.map(span))],
        vec!["bytes sent".to_owned(), expected(|f| size(f.bytes)), measured(|o| Some(size(o.bytes)))],
    ];
    if let Some(outcome) = outcome {
        rows.push(vec!["passes over memory".to_owned(), String::new(), outcome.rounds.to_string()]);
        if let Some(gap) = outcome.gap {
            rows.push(vec!["silence on the network".to_owned(), String::new(), span(gap)]);
        }
    }
    rows
}

/// Says what was expected when the move was ordered, for people only.
pub async fn tell_expected(session: &Session, vm: &Name, migration: Option<&Name>) {
    let Some(migration) = migration else { return };
    // The move goes on whether it can be read or not.
    let Ok(ordered) = session.client.migrations().get(migration).await else { return };
    if let Some(forecast) = &ordered.spec.forecast {
        expected_text(vm, forecast).iter().for_each(|line| session.talk(line));
    }
}

/// What is expected in one line; where that is not what was asked for, a second one that says what would help.
fn expected_text(vm: &Name, forecast: &Forecast) -> Vec<String> {
    let (verdict, would_help) = match forecast.verdict {
        Verdict::Fits => ("fits", None),
        Verdict::NeedsThrottling => ("needs throttling", None),
        Verdict::NeedsLongerPause => {
            let pause = format!("`--max-downtime {}`", enough(forecast.downtime));
            ("needs a longer pause", Some(format!("{pause} would do")))
        }
        Verdict::WillNotConverge => ("will not converge", Some(forecast.advice.clone())),
    };
    let (total, pause) = (span(forecast.total), span(forecast.downtime));
    let mut lines = vec![format!("vm {vm}: expected: {total}, pause {pause} ({verdict})")];
    lines.extend(would_help.map(|help| {
        format!("warning: vm {vm} may stay where it is: it {verdict}. It is tried all the same; {help}")
    }));
    lines
}

/// A forecast in plain words.
pub fn forecast_text(forecast: &Forecast, to: Option<&Name>) -> String {
    let verdict = match forecast.verdict {
        Verdict::Fits => "It should go well",
        Verdict::NeedsThrottling => "The guest would have to be slowed for it",
        Verdict::NeedsLongerPause => "The guest would pause longer than asked for",
        Verdict::WillNotConverge => {
            "The guest writes faster than the line carries: it would not end by itself"
        }
    };
    let advice = if forecast.advice.is_empty() { String::new() } else { format!("; {}", forecast.advice) };
    let trust = match forecast.confidence {
        Confidence::Low => "a guess: the guest's writes or the line have not been measured yet",
        Confidence::Fair => "fair: some of it is assumed",
        Confidence::Good => "good: all of it was measured",
    };
    let to = to.map(|to| format!(" to host {to}")).unwrap_or_default();
    format!(
        "A move{to} would take {}, send {} and pause the guest for {}. {verdict}{advice}.\nFrom: {}.\n\
         Confidence: {trust}.\n",
        span(forecast.total),
        size(forecast.bytes),
        span(forecast.downtime),
        forecast.basis
    )
}

/// How far off earlier forecasts were, one line each.
pub fn past_text(past: &[Past]) -> String {
    let line = |past: &Past| {
        let paused = past.downtime.map_or_else(String::new, |downtime| {
            format!(", paused {} instead of {}", span(downtime), span(past.downtime_expected))
        });
        let (took, expected) = (span(past.total), span(past.total_expected));
        format!("Earlier: {} took {took} instead of {expected}{paused}.\n", past.migration)
    };
    past.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(verdict: Verdict) -> Forecast {
        Forecast {
            total: Span::from_secs(20),
            downtime: Span::from_millis(2100),
            bytes: Bytes::mib(140),
            verdict,
            advice: "allow a pause of 2200ms".to_owned(),
            confidence: Confidence::Good,
            basis: "measured".to_owned(),
        }
    }

    #[test]
    fn what_is_expected_of_a_move_is_one_line_and_a_warning_says_what_would_help() {
        let web = Name::new("web").unwrap();
        let lines = |verdict| expected_text(&web, &forecast(verdict));
        assert_eq!(lines(Verdict::Fits), ["vm web: expected: 20.0 s, pause 2.1 s (fits)"]);
        assert_eq!(lines(Verdict::NeedsThrottling).len(), 1);
        let longer = lines(Verdict::NeedsLongerPause);
        assert!(longer[0].ends_with("(needs a longer pause)"), "{longer:?}");
        assert!(
            longer[1].ends_with(
                "it needs a longer pause. It is tried all the same; `--max-downtime 2200ms` would do"
            ),
            "{longer:?}"
        );
        let never = lines(Verdict::WillNotConverge);
        assert!(
            never[1].starts_with("warning: ") && never[1].ends_with("allow a pause of 2200ms"),
            "{never:?}"
        );
    }

    #[test]
    fn a_forecast_says_what_would_help_and_how_far_to_trust_it() {
        let forecast = forecast(Verdict::NeedsLongerPause);
        let text = forecast_text(&forecast, None);
        assert!(text.contains("longer than asked for; allow a pause of 2200ms."), "{text}");
        assert!(text.ends_with("Confidence: good: all of it was measured.\n"), "{text}");
    }

    #[test]
    fn earlier_forecasts_stand_beside_what_came_of_them() {
        let past = Past {
            migration: Name::new("web-1").unwrap(),
            total_expected: Span::from_secs(20),
            total: Span::from_secs(22),
            downtime_expected: Span::from_millis(300),
            downtime: None,
        };
        let text = past_text(&[past.clone(), Past { downtime: Some(Span::from_millis(280)), ..past }]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(!lines[0].contains("paused") && lines[1].contains("paused"), "{text}");
    }
}
