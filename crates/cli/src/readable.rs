//! Sizes, spans and times for people. Machine-readable output never passes through here.

use std::time::Duration;

use sterna_base::clock::{Clock, SystemClock, Timestamp};
use sterna_base::units::{Bytes, Span};

/// Two or three digits and a unit: `1.4 GiB`.
pub fn size(bytes: Bytes) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes.as_u64() >= *size) {
        None => format!("{} B", bytes.as_u64()),
        Some((unit, size)) => {
            // Exact enough for three digits.
            let value = bytes.as_u64() as f64 / *size as f64;
            if value >= 100.0 || value.fract() < 0.05 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            }
        }
    }
}

/// `35 ms`, `1.2 s`, `3 min 20 s`.
pub fn span(span: Span) -> String {
    let ms = span.as_millis();
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        3_600_000..172_800_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// How long ago, in one unit: `5m`.
pub fn age(at: Timestamp) -> String {
    short(SystemClock.now().since(at))
}

fn short(passed: Duration) -> String {
    match passed.as_secs() {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_have_few_digits() {
        let sizes =
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (256 << 20, "256 MiB"), (4 << 30, "4 GiB")];
        for (bytes, text) in sizes {
            assert_eq!(size(Bytes(bytes)), text);
        }
        let spans = [
            (0, "0 ms"),
            (999, "999 ms"),
            (1234, "1.2 s"),
            (200_000, "3 min 20 s"),
            (7_260_000, "2 h 1 min"),
        ];
        for (ms, text) in spans {
            assert_eq!(span(Span::from_millis(ms)), text);
        }
        assert_eq!(short(Duration::from_secs(600)), "10m");
    }
}
