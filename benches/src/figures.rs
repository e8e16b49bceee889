//! Medians of what was measured, and the table of them.

use std::fmt::Write;

use crate::{
    Result,
    subject::{Kind, Subject},
};

/// What one measurement of one server found.
pub type Figures = Vec<(&'static str, f64)>;

/// Something that is done to several servers.
pub struct Job {
    /// For `--only`.
    pub key: &'static str,
    pub title: String,
    pub subjects: Vec<Subject>,
    pub measure: Box<dyn Fn(&Subject) -> Result<Figures>>,
}

/// One figure of several servers.
#[derive(Debug)]
pub struct Row {
    pub key: &'static str,
    pub title: String,
    pub figure: &'static str,
    pub medians: Vec<(Subject, f64)>,
}

impl Job {
    /// Measures each server in each round and returns the medians.
    pub fn run(&self, rounds: usize) -> Result<Vec<Row>> {
        let samples = self.samples(rounds)?;
        let rows = samples[0][0].iter().enumerate().map(|(nth, (figure, _))| Row {
            key: self.key,
            title: self.title.clone(),
            figure,
            medians: (self.subjects.iter().zip(&samples))
                .map(|(subject, rounds)| (subject.clone(), median(rounds.iter().map(|round| round[nth].1).collect())))
                .collect(),
        });
        Ok(rows.collect())
    }

    /// Measures each server once a round, so that a disturbance of the machine affects all of them. The order is reversed in
    /// every second round, so that no server always follows the same one.
    ///
    /// Returns the rounds of each subject.
    pub(crate) fn samples(&self, rounds: usize) -> Result<Vec<Vec<Figures>>> {
        let mut samples: Vec<Vec<Figures>> = self.subjects.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            let mut turns: Vec<_> = self.subjects.iter().zip(&mut samples).collect();
            if round % 2 == 1 {
                turns.reverse();
            }
            for (subject, samples) in turns {
                let figures = (self.measure)(subject).map_err(|error| format!("{}, {subject}: {error}", self.title))?;
                samples.push(figures);
            }
        }
        Ok(samples)
    }
}

impl Row {
    pub fn of(&self, kind: Kind) -> Option<f64> {
        self.medians.iter().find(|(subject, _)| subject.kind == kind).map(|(_, value)| *value)
    }

    /// The layer's figure in parts of the floor's.
    pub fn ratio(&self) -> Option<f64> {
        let floor = self.of(Kind::FloorBytes).or(self.of(Kind::Plain))?;
        Some(self.of(Kind::Comet)? / floor)
    }
}

pub const COLUMNS: [(Kind, &str); 6] = [
    (Kind::Floor, "bare hyper"),
    (Kind::FloorBytes, "bare hyper, same bytes"),
    (Kind::Comet, "tower-comet"),
    (Kind::Nchan, "Nchan"),
    (Kind::Streams, "durable-streams"),
    (Kind::StreamsServer, "durable-streams-server"),
];

/// A table in Markdown, of columns for which there is something.
pub fn table(rows: &[&Row]) -> String {
    let here: Vec<_> = COLUMNS.iter().filter(|(kind, _)| rows.iter().any(|row| row.of(*kind).is_some())).collect();
    let mut text = String::from("| |");
    for (kind, name) in &here {
        let _ = write!(text, " {name} |");
        if *kind == Kind::Comet {
            text += " of bare hyper's |";
        }
    }
    let _ = write!(text, "\n| --- |{}\n", " ---: |".repeat(here.len() + 1));
    for row in rows {
        let _ = write!(text, "| {}: {} |", row.title, row.figure);
        for (kind, _) in &here {
            let value = row.of(*kind).or_else(|| row.of(Kind::Plain).filter(|_| *kind == Kind::FloorBytes));
            let _ = write!(text, " {} |", value.map_or("–".to_owned(), shown));
            if *kind == Kind::Comet {
                let _ = write!(text, " {} |", row.ratio().map_or("–".to_owned(), |ratio| format!("{ratio:.2}")));
            }
        }
        text += "\n";
    }
    text
}

/// With three digits that count.
pub fn shown(value: f64) -> String {
    if value >= 1_000.0 {
        let (thousands, rest) = (value.round() as u64 / 1_000, value.round() as u64 % 1_000);
        return format!("{thousands},{rest:03}");
    }
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

/// Returns the middle value, or the mean of the middle two; `NaN` if there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => f64::midpoint(values[count / 2 - 1], values[count / 2]),
        count => values[count / 2],
    }
}
