//! What a benchmark prints and writes: figures against their bars, and the baseline that each was measured beside.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Deserializer, Serialize};

/// Exit code when a bar does not hold.
pub const MISSED: u8 = 3;

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    /// What could not be measured is not a number; in JSON it is `null`.
    #[serde(deserialize_with = "number")]
    pub value: f64,
    pub unit: String,
    /// The bar, in `unit`; absent: printed for information.
    pub bar: Option<Bar>,
    /// `None` when there is no bar.
    pub holds: Option<bool>,
    /// What the baseline measured, in `unit`.
    pub baseline: Option<f64>,
    /// Under which it was measured, where that is not the same for a whole table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<String>,
}

/// JSON has no word for what is not a number.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Which side of a number is good.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    AtMost(#[serde(deserialize_with = "number")] f64),
    AtLeast(#[serde(deserialize_with = "number")] f64),
}

impl Bar {
    /// Only numbers can be compared.
    fn holds(self, value: f64) -> bool {
        self.limit().is_finite()
            && value.is_finite()
            && match self {
                Bar::AtMost(bar) => value <= bar,
                Bar::AtLeast(bar) => value >= bar,
            }
    }

    fn limit(self) -> f64 {
        match self {
            Bar::AtMost(bar) | Bar::AtLeast(bar) => bar,
        }
    }

    fn text(self) -> String {
        match self {
            Bar::AtMost(bar) => format!("<= {}", short(bar)),
            Bar::AtLeast(bar) => format!(">= {}", short(bar)),
        }
    }
}

/// All figures of one benchmark.
#[derive(Debug, Default)]
pub struct Table {
    pub figures: Vec<Figure>,
    /// Conditions under which it ran, printed above the figures.
    pub notes: Vec<String>,
}

#[allow(clippy::too_many_arguments, reason = "the columns of one row, in order")]
impl Table {
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// A figure with a bar. Where one of both is not a number, it does not hold, and a note says so.
    pub fn bar(&mut self, name: &str, value: f64, unit: &str, bar: Bar, baseline: Option<f64>) {
        let holds = Some(bar.holds(value));
        if !bar.limit().is_finite() {
            self.note(format!("{name}: the bar itself could not be measured"));
        }
        self.push(name, value, unit, Some(bar), holds, baseline);
    }

    /// A figure for information.
    pub fn info(&mut self, name: &str, value: f64, unit: &str, baseline: Option<f64>) {
        self.push(name, value, unit, None, None, baseline);
    }

    /// What could not be measured does not hold.
    pub fn failed(&mut self, name: &str) {
        self.push(name, f64::NAN, "", None, Some(false), None);
    }

    fn push(
        &mut self,
        name: &str,
        value: f64,
        unit: &str,
        bar: Option<Bar>,
        holds: Option<bool>,
        baseline: Option<f64>,
    ) {
        if !value.is_finite() {
            self.note(format!("{name}: not measured"));
        }
        let (name, unit) = (name.to_owned(), unit.to_owned());
        // Infinity has no place in JSON either.
        let value = if value.is_finite() { value } else { f64::NAN };
        let baseline = baseline.filter(|baseline| baseline.is_finite());
        self.figures.push(Figure { name, value, unit, bar, holds, baseline, conditions: None });
    }

    #[must_use]
    pub fn all_hold(&self) -> bool {
        self.figures.iter().all(|figure| figure.holds != Some(false))
    }

    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0).max(6);
        let _ = writeln!(
            text,
            "{:width$}  {:>12}  {:<6}  {:>12}  {:>12}  holds",
            "figure", "value", "unit", "bar", "baseline"
        );
        for figure in &self.figures {
            let bar = figure.bar.map_or_else(|| "-".to_owned(), Bar::text);
            let baseline = figure.baseline.map_or_else(|| "-".to_owned(), short);
            let holds = match figure.holds {
                None => "",
                Some(true) => "yes",
                Some(false) => "NO",
            };
            let value = short(figure.value);
            let (name, unit) = (&figure.name, &figure.unit);
            let _ =
                writeln!(text, "{name:width$}  {value:>12}  {unit:<6}  {bar:>12}  {baseline:>12}  {holds}");
        }
        text
    }

    /// Writes the figures as a JSON list.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let directory = path.parent().context("the JSON file needs a folder")?;
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let text = serde_json::to_string_pretty(&self.figures).context("write figures as JSON")?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// Three significant decimals at most: these machines are too noisy for more.
fn short(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let decimals = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        3
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The value below which `share` (0 to 1) of the samples lie; nearest rank. NaN without samples.
#[must_use]
pub fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[must_use]
pub fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(median(&samples), 50.0);
        assert_eq!(percentile(&samples, 0.99), 99.0);
        assert_eq!(percentile(&samples, 1.0), 100.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn one_missed_bar_is_a_miss_and_infos_never_are() {
        let mut table = Table::default();
        table.info("free", 9.0, "ms", None);
        table.bar("met", 1.0, "ms", Bar::AtMost(1.0), Some(2.0));
        assert!(table.all_hold());
        table.bar("missed", f64::NAN, "ms", Bar::AtMost(1.0), None);
        assert!(!table.all_hold(), "what could not be measured does not hold");
        assert!(table.render().contains("NO"));
    }

    #[test]
    fn what_could_not_be_measured_misses_its_bar_with_a_note_and_comes_back_from_a_file() {
        let mut table = Table::default();
        for value in [f64::NAN, f64::INFINITY] {
            table.bar("speed", value, "MB/s", Bar::AtLeast(1.0), Some(value));
        }
        table.bar("gap", 1.0, "ms", Bar::AtMost(f64::NAN), None);
        table.info("pause", f64::NAN, "ms", None);
        assert_eq!(table.notes.iter().filter(|note| note.contains("measured")).count(), 4);
        let holds = |figures: &[Figure]| figures.iter().map(|figure| figure.holds).collect::<Vec<_>>();
        let expected = [Some(false), Some(false), Some(false), None];
        assert_eq!(holds(&table.figures), expected);
        let text = serde_json::to_string(&table.figures).unwrap();
        let again: Vec<Figure> = serde_json::from_str(&text).unwrap();
        assert_eq!(holds(&again), expected);
        assert!(again[0].value.is_nan() && again[0].baseline.is_none());
        assert!(!again[2].bar.unwrap().holds(0.0));
    }

    #[test]
    fn a_figure_of_an_older_bench_is_read() {
        let old =
            r#"{"name":"gap","value":null,"unit":"ms","bar":{"at-most":null},"holds":false,"baseline":null}"#;
        let figure: Figure = serde_json::from_str(old).unwrap();
        assert!(figure.value.is_nan() && figure.conditions.is_none());
    }
}
