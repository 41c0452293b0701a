//! Brings a copy to the power state that is asked for, and says how one ended.

use sterna_model::vm::{Exit, Power};
use sterna_wire::shim::ExitRecord;

use super::decide::{Due, Step};
use super::record::Cause;
use crate::hypervisor::{Pause, Run};

/// The next step of an owned copy that no migration holds.
pub(super) fn next(power: Power, run: &Run, ending: Option<Cause>, due: Due) -> Step {
    match power {
        Power::Off => Step::Kill(Cause::Forced),
        Power::Stopped => shut_down(run, ending, due),
        Power::Running | Power::Paused if ending.is_some() => Step::Relent,
        Power::Paused if *run == Run::Running => Step::Pause,
        Power::Paused => Step::Wait,
        Power::Running => match run {
            Run::Running | Run::Incoming => Step::Wait,
            Run::Paused(Pause::IoError(_)) => {
                if due.retry_io {
                    Step::RetryIo
                } else {
                    Step::Wait
                }
            }
            // A crashed guest is kept as it is, for its owner to look at.
            Run::Paused(Pause::Panicked) => Step::Wait,
            Run::Paused(_) => Step::Run,
        },
    }
}

fn shut_down(run: &Run, ending: Option<Cause>, due: Due) -> Step {
    match (ending, run) {
        (Some(Cause::Forced | Cause::Released), _) => Step::Kill(Cause::Forced),
        (Some(Cause::Asked), _) if due.switch_off => Step::Kill(Cause::Forced),
        (Some(Cause::Asked), _) if due.press => Step::PressPowerButton,
        (Some(Cause::Asked), _) => Step::Wait,
        (None, Run::Running | Run::Paused(Pause::Asked | Pause::Migrated)) => Step::PressPowerButton,
        // Nobody is there who could hear the button.
        (None, _) => Step::Kill(Cause::Forced),
    }
}

/// Why a copy ended, from what its shim wrote and from what we had done to it.
#[must_use]
pub fn exit_of(record: &ExitRecord, ending: Option<Cause>) -> Exit {
    let by_guest = record.shutdown_reason.as_deref() == Some("guest-shutdown");
    match ending {
        Some(Cause::Released) => Exit::Released,
        Some(Cause::Forced) => Exit::Requested { forced: true },
        Some(Cause::Asked) if by_guest => Exit::Requested { forced: false },
        _ if by_guest => Exit::GuestShutdown,
        _ => Exit::Crashed { why: crash(record) },
    }
}

fn crash(record: &ExitRecord) -> String {
    let how = match (record.signal, record.code) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(0)) => match &record.shutdown_reason {
            Some(reason) => format!("ended by {reason}"),
            None => "ended by itself".to_owned(),
        },
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "ended".to_owned(),
    };
    match record.last_words.lines().rfind(|line| !line.trim().is_empty()) {
        Some(last) => format!("{how}: {}", last.trim()),
        None => how,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(code: Option<i32>, signal: Option<i32>, reason: Option<&str>) -> ExitRecord {
        ExitRecord {
            epoch: 1,
            code,
            signal,
            shutdown_reason: reason.map(str::to_owned),
            last_words: "first\nqemu: the disk is gone\n".into(),
        }
    }

    #[test]
    fn the_same_end_has_another_reason_for_each_cause() {
        let by_guest = record(Some(0), None, Some("guest-shutdown"));
        let killed = record(None, Some(9), None);
        let cases = [
            (&by_guest, None, Exit::GuestShutdown),
            (&by_guest, Some(Cause::Asked), Exit::Requested { forced: false }),
            (&by_guest, Some(Cause::Forced), Exit::Requested { forced: true }),
            (&killed, Some(Cause::Forced), Exit::Requested { forced: true }),
            (&killed, Some(Cause::Released), Exit::Released),
            (&killed, None, Exit::Crashed { why: "killed by signal 9: qemu: the disk is gone".into() }),
            // The guest was asked, and its QEMU died of something else meanwhile.
            (
                &killed,
                Some(Cause::Asked),
                Exit::Crashed { why: "killed by signal 9: qemu: the disk is gone".into() },
            ),
        ];
        for (record, ending, exit) in cases {
            assert_eq!(exit_of(record, ending), exit, "{record:?} {ending:?}");
        }
        let failed = exit_of(&record(Some(1), None, None), None);
        assert_eq!(failed, Exit::Crashed { why: "exit code 1: qemu: the disk is gone".into() });
    }

    #[test]
    fn each_power_state_has_its_step() {
        use Pause as P;
        let paused = Run::Paused;
        let due = Due::default();
        let cases = [
            (Power::Running, Run::Running, None, due, Step::Wait),
            (Power::Running, paused(P::NotStarted), None, due, Step::Run),
            (Power::Running, paused(P::Asked), None, due, Step::Run),
            (Power::Running, paused(P::IoError(vec![])), None, due, Step::Wait),
            (Power::Running, paused(P::IoError(vec![])), None, Due { retry_io: true, ..due }, Step::RetryIo),
            (Power::Running, paused(P::Panicked), None, due, Step::Wait),
            (Power::Running, Run::Running, Some(Cause::Asked), due, Step::Relent),
            (Power::Paused, Run::Running, None, due, Step::Pause),
            (Power::Paused, paused(P::NotStarted), None, due, Step::Wait),
            (Power::Stopped, Run::Running, None, due, Step::PressPowerButton),
            (Power::Stopped, paused(P::NotStarted), None, due, Step::Kill(Cause::Forced)),
            (Power::Stopped, Run::Running, Some(Cause::Asked), due, Step::Wait),
            (
                Power::Stopped,
                Run::Running,
                Some(Cause::Asked),
                Due { press: true, ..due },
                Step::PressPowerButton,
            ),
            (
                Power::Stopped,
                Run::Running,
                Some(Cause::Asked),
                Due { switch_off: true, press: true, ..due },
                Step::Kill(Cause::Forced),
            ),
            (Power::Off, Run::Running, None, due, Step::Kill(Cause::Forced)),
        ];
        for (power, run, ending, due, step) in cases {
            assert_eq!(next(power, &run, ending, due), step, "{power:?} {run:?} {ending:?} {due:?}");
        }
    }
}
