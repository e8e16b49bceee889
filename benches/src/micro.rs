//! One microbenchmark, run as a program: `benches/run --against COMMIT --only micro`.

use std::process::Command;

use crate::{Result, figures::Figures, subject::Subject};

/// The arguments of `wait` in `benches/micro.rs`, with the names of their figures.
const PARKED: [(&str, &str); 2] = [("0", "alone, ns"), ("10000", "beside 10,000 parked waits, ns")];

/// Begins a long-poll wait in process, parks it and drops it. The time is the median of divan's samples.
pub fn park_cycle(subject: &Subject) -> Result<Figures> {
    let mut command = Command::new(subject.program("micro")?);
    // Enough samples that the median of one process is steady to a few percent.
    command.args(["--bench", "wait", "--color", "never", "--sample-count", "1000"]);
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} failed with {}: {}", output.status, text.trim()).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let figure = |(argument, name)| match median(&text, argument) {
        Some(nanoseconds) => Ok((name, nanoseconds)),
        None => Err(format!("{command:?} printed no median of `wait` with the argument {argument}").into()),
    };
    PARKED.into_iter().map(figure).collect()
}

/// Reads the median, in nanoseconds, from the row of an argument in divan's table:
/// `├─ 0  390.1 ns │ 1.031 µs │ 401.3 ns │ 409.4 ns │ 100 │ 1600`.
fn median(table: &str, argument: &str) -> Option<f64> {
    let row = table.lines().find_map(|line| {
        let mut words = line.trim_start_matches(['│', '├', '╰', '─', ' ']).splitn(2, ' ');
        (words.next() == Some(argument)).then(|| words.next()).flatten()
    })?;
    let (number, unit) = row.split('│').nth(2)?.trim().split_once(' ')?;
    let factor = match unit {
        "ps" => 1e-3,
        "ns" => 1.0,
        "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::median;

    const TABLE: &str = "\
Timer precision: 10 ns
micro       fastest       │ slowest       │ median        │ mean          │ samples │ iters
╰─ wait                   │               │               │               │         │
   ├─ 0     390.1 ns      │ 1.031 µs      │ 401.3 ns      │ 409.4 ns      │ 100     │ 1600
   │        alloc:        │               │               │               │         │
   │          2           │ 2             │ 2             │ 2             │         │
   ╰─ 10000 1.1 µs        │ 17.27 µs      │ 1.25 µs       │ 1.505 µs      │ 100     │ 400
            alloc:        │               │               │               │         │
";

    #[test]
    fn the_median_is_read_from_the_row_of_its_argument() {
        assert_eq!(median(TABLE, "0"), Some(401.3));
        assert_eq!(median(TABLE, "10000"), Some(1250.0));
        assert_eq!(median(TABLE, "1"), None);
        assert_eq!(median("╰─ 0  1 h │ 1 h │ 1 h │ 1 h │ 1 │ 1", "0"), None);
    }
}
