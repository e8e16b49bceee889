//! Compares the working tree with another commit: `benches/run --against COMMIT`.

use std::{
    fmt::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    Result,
    figures::{Job, median, shown},
    subject::Kind,
};

/// The largest excess that a wide spread allows.
const LIMIT: f64 = 0.05;

/// Returns the folder into which `benches/run` builds the binaries of a commit, given by its full hash.
///
/// # Errors
///
/// The commit has not been built.
pub fn programs(commit: &str) -> Result<PathBuf> {
    let folder = Path::new("target/against").join(commit).join("target/release");
    if !folder.join("tower-comet-bench").is_file() {
        return Err(
            format!("{} does not exist: build it with `benches/run --against {commit}`", folder.display()).into()
        );
    }
    Ok(folder)
}

/// One figure, measured on both sides in the same rounds.
#[derive(Debug)]
pub struct Comparison {
    /// The row and the figure, as in the table.
    pub name: String,
    pub sense: Sense,
    /// The working tree's rounds.
    pub ours: Vec<f64>,
    /// The other commit's rounds.
    pub theirs: Vec<f64>,
}

/// Which way a figure is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sense {
    LessIsBetter,
    MoreIsBetter,
    /// Not a figure of the server: the load client's own processor time.
    NotJudged,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    NotWorse,
    Worse,
    NotJudged,
}

impl Sense {
    fn of(figure: &str) -> Self {
        match figure {
            _ if figure.starts_with("the load's own") => Self::NotJudged,
            _ if figure.starts_with("deliveries a second") => Self::MoreIsBetter,
            _ => Self::LessIsBetter,
        }
    }
}

impl Job {
    /// Measures tower-comet's server of the working tree and that of the other commit in alternating order.
    pub fn compare(mut self, programs: &Path, rounds: usize) -> Result<Vec<Comparison>> {
        self.subjects.retain(|subject| subject.kind == Kind::Comet);
        let theirs: Vec<_> = self.subjects.iter().map(|subject| subject.clone().built_in(programs)).collect();
        self.subjects.extend(theirs);
        let samples = self.samples(rounds)?;
        let [ours, theirs] = &*samples else {
            return Err(format!("{}: not one server of tower-comet, but {}", self.title, samples.len() / 2).into());
        };
        let comparisons = ours[0].iter().enumerate().map(|(nth, (figure, _))| Comparison {
            name: format!("{}: {figure}", self.title),
            sense: Sense::of(figure),
            ours: ours.iter().map(|round| round[nth].1).collect(),
            theirs: theirs.iter().map(|round| round[nth].1).collect(),
        });
        Ok(comparisons.collect())
    }
}

impl Comparison {
    /// The working tree is worse if its median exceeds the other's by more than [`allowed`](Self::allowed).
    ///
    /// A figure that is not a number is worse.
    pub fn verdict(&self) -> Verdict {
        let (ours, theirs, factor) = (middle(&self.ours), middle(&self.theirs), 1.0 + self.allowed());
        let not_worse = match self.sense {
            Sense::LessIsBetter => ours <= theirs * factor,
            Sense::MoreIsBetter => ours * factor >= theirs,
            Sense::NotJudged => return Verdict::NotJudged,
        };
        if not_worse { Verdict::NotWorse } else { Verdict::Worse }
    }

    /// The excess that is not called worse: the spread of the working tree's own rounds, at most 5 %.
    ///
    /// A single round has no spread, so it allows no excess.
    pub fn allowed(&self) -> f64 {
        spread(&self.ours).min(LIMIT)
    }

    /// The working tree's median divided by the other's.
    pub fn ratio(&self) -> f64 {
        middle(&self.ours) / middle(&self.theirs)
    }

    /// Marks a worse figure if either side's own rounds differ by as much as the two medians do: that may be noise.
    fn remark(&self) -> &'static str {
        let ratio = self.ratio();
        let is_noise = ratio.max(1.0 / ratio) - 1.0 <= spread(&self.ours).max(spread(&self.theirs));
        if is_noise && self.verdict() == Verdict::Worse { " (within the spread)" } else { "" }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotWorse => "not worse",
            Self::Worse => "worse",
            Self::NotJudged => "not judged",
        })
    }
}

/// Renders a table in Markdown.
pub fn table(commit: &str, comparisons: &[Comparison]) -> String {
    let short = commit.get(..10).unwrap_or(commit);
    let mut text = format!(
        "| | working tree | {short} | ratio | spread, working tree | spread, {short} | allowed | |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
    );
    for comparison in comparisons {
        let Comparison { name, ours, theirs, .. } = comparison;
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {:.3} | {} | {} | {} | {}{} |",
            shown(middle(ours)),
            shown(middle(theirs)),
            comparison.ratio(),
            percent(spread(ours)),
            percent(spread(theirs)),
            percent(comparison.allowed()),
            comparison.verdict(),
            comparison.remark(),
        );
    }
    text
}

/// Returns the names of the figures in which the working tree is worse, with a remark if the rounds differ by as much.
pub fn worse(comparisons: &[Comparison]) -> Vec<String> {
    let worse = comparisons.iter().filter(|comparison| comparison.verdict() == Verdict::Worse);
    worse.map(|comparison| format!("{}{}", comparison.name, comparison.remark())).collect()
}

/// The difference between the largest and the smallest round, divided by the median.
fn spread(rounds: &[f64]) -> f64 {
    let (least, most) =
        rounds.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), x| (least.min(*x), most.max(*x)));
    if least == most { 0.0 } else { (most - least) / middle(rounds).abs() }
}

fn middle(rounds: &[f64]) -> f64 {
    median(rounds.to_vec())
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, path::Path, rc::Rc};

    use super::{
        Comparison, Sense,
        Sense::{LessIsBetter, MoreIsBetter, NotJudged},
        Verdict, table, worse,
    };
    use crate::{
        figures::Job,
        subject::{Kind, Subject},
    };

    fn comparison(sense: Sense, ours: &[f64], theirs: &[f64]) -> Comparison {
        Comparison { name: "row: figure".to_owned(), sense, ours: ours.to_vec(), theirs: theirs.to_vec() }
    }

    #[test]
    fn a_median_may_exceed_the_other_by_its_own_spread_and_by_at_most_5_percent() {
        use Verdict::{NotWorse, Worse};
        let steady = [100.0, 100.0, 100.0];
        let nan = f64::NAN;
        #[rustfmt::skip]
        let cases: &[(&str, Sense, &[f64], &[f64], Verdict)] = &[
            ("equal",                           LessIsBetter, &steady,               &steady,               NotWorse),
            ("equal, more is better",           MoreIsBetter, &steady,               &steady,               NotWorse),
            ("better",                          LessIsBetter, &[80.0, 80.0, 80.0],   &steady,               NotWorse),
            ("better, more is better",          MoreIsBetter, &[120.0, 120.0, 120.0], &steady,              NotWorse),
            ("within its spread",               LessIsBetter, &[101.0, 103.0, 105.0], &steady,              NotWorse),
            ("within its spread, inverted",     MoreIsBetter, &[95.0, 97.0, 99.0],   &steady,               NotWorse),
            ("above its spread",                LessIsBetter, &[102.0, 103.0, 103.0], &steady,              Worse),
            ("above its spread, inverted",      MoreIsBetter, &[97.0, 97.0, 98.0],   &steady,               Worse),
            ("only the other's rounds spread",  LessIsBetter, &[103.0, 103.0, 103.0], &[80.0, 100.0, 120.0], Worse),
            ("5 %, wide spread",                LessIsBetter, &[95.0, 105.0, 125.0], &steady,               NotWorse),
            ("above 5 %, wide spread",          LessIsBetter, &[95.0, 106.0, 125.0], &steady,               Worse),
            ("above 5 %, wide spread, inverted", MoreIsBetter, &[80.0, 95.0, 110.0], &steady,               Worse),
            ("one round, equal",                LessIsBetter, &[100.0],              &[100.0],              NotWorse),
            ("one round, better",               LessIsBetter, &[99.9],               &[100.0],              NotWorse),
            ("one round, any excess",           LessIsBetter, &[100.1],              &[100.0],              Worse),
            ("one round, any lack, inverted",   MoreIsBetter, &[99.9],               &[100.0],              Worse),
            ("two rounds: the mean of both",    LessIsBetter, &[99.0, 101.0],        &[90.0, 110.0],        NotWorse),
            ("both zero",                       LessIsBetter, &[0.0, 0.0],           &[0.0, 0.0],           NotWorse),
            ("not a number",                    LessIsBetter, &[nan, nan],           &[100.0, 100.0],       Worse),
            ("against not a number",            MoreIsBetter, &[100.0, 100.0],       &[nan, nan],           Worse),
            ("the load's",                      NotJudged,    &[200.0, 200.0],       &[100.0, 100.0],       Verdict::NotJudged),
        ];
        for (case, sense, ours, theirs, verdict) in cases {
            assert_eq!(comparison(*sense, ours, theirs).verdict(), *verdict, "{case}");
        }
    }

    #[test]
    fn a_comparison_measures_both_commits_of_tower_comet_in_alternating_order_and_nothing_else() {
        let turns = Rc::new(RefCell::new(Vec::new()));
        let recorded = turns.clone();
        let job = Job {
            key: "row",
            title: "row".to_owned(),
            subjects: [Kind::FloorBytes, Kind::Comet].map(|kind| Subject::new(kind, "http1")).to_vec(),
            measure: Box::new(move |subject| {
                assert_eq!(subject.kind, Kind::Comet);
                let mut turns = recorded.borrow_mut();
                turns.push(if subject.programs.is_some() { "theirs" } else { "ours" });
                Ok(vec![("figure", turns.len() as f64)])
            }),
        };
        let comparisons = job.compare(Path::new("folder"), 3).expect("figures");
        assert_eq!(*turns.borrow(), ["ours", "theirs", "theirs", "ours", "ours", "theirs"]);
        assert_eq!(comparisons[0].ours, [1.0, 4.0, 5.0]);
        assert_eq!(comparisons[0].theirs, [2.0, 3.0, 6.0]);
    }

    #[test]
    fn deliveries_a_second_are_better_if_more_and_the_loads_own_time_is_not_judged() {
        assert_eq!(Sense::of("deliveries a second, thousands"), MoreIsBetter);
        assert_eq!(Sense::of("the load's own CPU, µs"), NotJudged);
        assert_eq!(Sense::of("CPU per delivery, µs"), LessIsBetter);
    }

    #[test]
    fn the_table_shows_both_medians_and_spreads_and_marks_a_difference_within_the_spread() {
        let comparisons = [
            comparison(LessIsBetter, &[95.0, 110.0, 125.0], &[100.0, 100.0, 110.0]),
            comparison(LessIsBetter, &[110.0, 110.0, 111.0], &[100.0, 100.0, 100.0]),
            comparison(LessIsBetter, &[100.0, 100.0, 100.0], &[100.0, 100.0, 100.0]),
        ];
        let text = table("0123456789abcdef", &comparisons);
        let rows: Vec<_> = text.lines().collect();
        assert!(rows[0].starts_with("| | working tree | 0123456789 | ratio |"), "{text}");
        assert_eq!(
            rows[2..],
            [
                "| row: figure | 110 | 100 | 1.100 | 27.3 % | 10.0 % | 5.0 % | worse (within the spread) |",
                "| row: figure | 110 | 100 | 1.100 | 0.9 % | 0.0 % | 0.9 % | worse |",
                "| row: figure | 100 | 100 | 1.000 | 0.0 % | 0.0 % | 0.0 % | not worse |",
            ]
        );
        assert_eq!(worse(&comparisons), ["row: figure (within the spread)", "row: figure"]);
    }
}
