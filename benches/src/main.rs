//! `benches/run`: measures, and prints what was found. See the library.

use std::{env, fs, process::ExitCode, time::Instant};

use tower_comet_bench::{
    Result, against,
    figures::{COLUMNS, Job, Row, table},
    many::many,
    micro, plot, rows, server,
    subject::{Kind, PEERS, Subject},
};

const FLOORS: [Kind; 3] = [Kind::Floor, Kind::FloorBytes, Kind::Comet];

/// The exit status if the working tree is worse than the commit after `--against`.
const WORSE: u8 = 3;

fn main() -> Result<ExitCode> {
    let mut args = env::args().skip(1).peekable();
    if args.next_if(|arg| arg == "serve").is_some() {
        return server::main(args).map(|()| ExitCode::SUCCESS);
    }
    let mut plan = Plan { waiters: 10_000, million: 1_000, rounds: 3, only: None, write: false, against: None };
    while let Some(arg) = args.next() {
        match &*arg {
            "--waiters" => plan.waiters = args.next().ok_or("how many?")?.parse()?,
            "--rounds" => plan.rounds = args.next().ok_or("how many?")?.parse()?,
            "--only" => plan.only = Some(args.next().ok_or("which?")?),
            "--write" => plan.write = true,
            "--against" => plan.against = Some(args.next().ok_or("--against requires a commit")?),
            _ => return Err(format!("unknown flag {arg}").into()),
        }
    }
    if plan.rounds == 0 {
        return Err("--rounds requires a number of at least 1".into());
    }
    match &plan.against {
        Some(_) if plan.write => Err("--write does not go with --against".into()),
        Some(commit) => compare(&plan, commit),
        None => run(&plan).map(|()| ExitCode::SUCCESS),
    }
}

struct Plan {
    waiters: usize,
    /// Connections, each with a thousand streams.
    million: usize,
    rounds: usize,
    only: Option<String>,
    write: bool,
    /// The full hash of the commit to compare the working tree with.
    against: Option<String>,
}

/// Compares the working tree with a commit that `benches/run` has built.
fn compare(plan: &Plan, commit: &str) -> Result<ExitCode> {
    let began = Instant::now();
    let programs = against::programs(commit)?;
    println!("{}\n", machine()?);
    let mut found = Vec::new();
    for job in wanted(plan)? {
        eprintln!("{}", job.title);
        found.extend(job.compare(&programs, plan.rounds)?);
    }
    println!("{}\n{} minutes, {} rounds", against::table(commit, &found), began.elapsed().as_secs() / 60, plan.rounds);
    if plan.rounds < 3 {
        println!("Fewer than three rounds say little about the spread.");
    }
    let worse = against::worse(&found);
    if worse.is_empty() {
        println!("The working tree is not worse than {commit}.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("The working tree is worse than {commit} in:\n- {}", worse.join("\n- "));
    Ok(ExitCode::from(WORSE))
}

/// Returns the jobs that `--only` selects, or all.
fn wanted(plan: &Plan) -> Result<Vec<Job>> {
    let mut jobs = jobs(plan);
    let Some(only) = &plan.only else { return Ok(jobs) };
    let mut keys: Vec<_> = jobs.iter().map(|job| job.key).collect();
    keys.dedup();
    jobs.retain(|job| job.key == only);
    if jobs.is_empty() {
        return Err(format!("no row is named {only}: --only takes one of {}", keys.join(", ")).into());
    }
    Ok(jobs)
}

fn run(plan: &Plan) -> Result<()> {
    let began = Instant::now();
    let machine = machine()?;
    println!("{machine}\n");
    for kind in PEERS.iter().filter(|kind| !kind.is_installed()) {
        println!("{} is not installed, and not measured", kind.name());
    }
    let mut rows = Vec::new();
    for job in wanted(plan)? {
        let found = job.run(plan.rounds)?;
        println!("\n{}", table(&found.iter().collect::<Vec<_>>()));
        rows.extend(found);
    }
    println!("{} minutes", began.elapsed().as_secs() / 60);
    if plan.write {
        write(&machine, &rows)?;
    }
    Ok(())
}

fn jobs(plan: &Plan) -> Vec<Job> {
    let waiters = plan.waiters;
    let with_peers = || {
        let peers = PEERS.into_iter().filter(|kind| kind.is_installed());
        FLOORS.into_iter().chain(peers).map(|kind| Subject::new(kind, "http1")).collect::<Vec<_>>()
    };
    let floors = |builder: &'static str, jemalloc: bool| {
        FLOORS.map(|kind| if jemalloc { Subject::new(kind, builder).jemalloc() } else { Subject::new(kind, builder) })
    };
    let mut jobs = Vec::new();
    let mut add = |key, title: String, subjects: Vec<Subject>, measure: Box<dyn Fn(&Subject) -> Result<_>>| {
        jobs.push(Job { key, title, subjects, measure });
    };
    for n in [waiters / 100, waiters / 30, waiters / 10, waiters / 3, waiters] {
        add("fan-out", format!("fan-out to {n}"), with_peers(), Box::new(move |subject| rows::fan_out(subject, n)));
    }
    for builder in ["auto", "axum"] {
        let title = format!("fan-out to {waiters}, {builder}");
        let subjects = floors(builder, false).to_vec();
        add("builders", title, subjects, Box::new(move |subject| rows::fan_out(subject, waiters)));
    }
    let title = "spread over 1,000 channels".to_owned();
    add("spread", title, with_peers(), Box::new(|subject| rows::spread(subject, 1_000, 100_000)));
    for (title, size) in [("catch-up, 64 B", 64), ("catch-up, 16 KiB", 16 * 1024)] {
        add("read", title.to_owned(), with_peers(), Box::new(move |subject| rows::read(subject, size, 200_000)));
    }
    let plain = [Kind::Plain, Kind::Comet].map(|kind| Subject::new(kind, "http1")).to_vec();
    add("foreign", "foreign".to_owned(), plain, Box::new(|subject| rows::foreign(subject, 300_000)));
    let events = vec![Subject::new(Kind::Comet, "http1")];
    add("events", format!("{waiters} event streams"), events, Box::new(move |subject| rows::events(subject, waiters)));
    add("memory", "parked, http1".to_owned(), with_peers(), Box::new(move |subject| rows::memory(subject, waiters)));
    for (builder, jemalloc) in [("auto", false), ("axum", false), ("http1", true), ("auto", true), ("axum", true)] {
        let title = format!("parked, {builder}{}", if jemalloc { ", jemalloc" } else { "" });
        let subjects = floors(builder, jemalloc).to_vec();
        add("memory", title, subjects, Box::new(move |subject| rows::memory(subject, waiters)));
    }
    for (builder, jemalloc) in [("http2", false), ("http2", true), ("closure", true)] {
        let how = if builder == "closure" { ", without an adapter" } else { "" };
        let title = format!("{waiters} on HTTP/2{}{how}", if jemalloc { ", jemalloc" } else { "" });
        let subjects = floors(builder, jemalloc).to_vec();
        add("http2", title, subjects, Box::new(move |subject| many(subject, waiters / 1_000, 1_000, 8)));
    }
    let (million, subjects) = (plan.million, floors("closure", true)[1..].to_vec());
    add(
        "million",
        "a million on HTTP/2, jemalloc, without an adapter".to_owned(),
        subjects,
        Box::new(move |subject| many(subject, million, 1_000, 1)),
    );
    if plan.against.is_some() {
        // Bare hyper has no such step, so this row is not part of a run without a commit to compare with.
        let subjects = vec![Subject::new(Kind::Comet, "none")];
        add("micro", "park cycle in process".to_owned(), subjects, Box::new(micro::park_cycle));
    }
    jobs
}

/// What the figures were found on.
fn machine() -> Result<String> {
    let line = |path: &str, name: &str| -> Result<String> {
        let text = fs::read_to_string(path)?;
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        Ok(line.split_once(':').unwrap_or_default().1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism()?;
    let (model, memory) = (line("/proc/cpuinfo", "model name")?, line("/proc/meminfo", "MemTotal")?);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!(
        "{model}, {cores} cores for the server and the load together, {memory} of memory, Linux {}",
        kernel.trim()
    ))
}

/// Puts the figures where the documents want them: between two comments that say so.
fn write(machine: &str, rows: &[Row]) -> Result<()> {
    for (path, wanted) in [("README.md", is_headline as fn(&Row) -> bool), ("docs/performance.md", is_told)] {
        let figures = format!("{machine}.\n\n{}", table(&rows.iter().filter(|row| wanted(row)).collect::<Vec<_>>()));
        let text = fs::read_to_string(path)?;
        let parts = text
            .split_once("<!-- figures -->\n")
            .and_then(|(before, rest)| Some((before, rest.split_once("<!-- end of figures -->")?.1)));
        if let Some((before, after)) = parts {
            fs::write(path, format!("{before}<!-- figures -->\n{figures}<!-- end of figures -->{after}"))?;
        }
    }
    for (name, svg) in plots(rows) {
        fs::write(format!("docs/{name}.svg"), svg)?;
    }
    Ok(())
}

/// What the README says: the rest is behind its link.
fn is_headline(row: &Row) -> bool {
    const HEADLINES: [(&str, &str); 7] = [
        ("fan-out to 10000", "CPU per"),
        ("fan-out to 10000", "the last"),
        ("spread over 1,000 channels", "deliveries"),
        ("catch-up, 64 B", "CPU"),
        ("catch-up, 16 KiB", "CPU"),
        ("parked, http1, jemalloc", "resident"),
        ("a million on HTTP/2, jemalloc, without an adapter", "resident in all"),
    ];
    HEADLINES.iter().any(|(title, figure)| row.title == *title && row.figure.starts_with(figure))
}

/// The rest is for the plots.
fn is_told(row: &Row) -> bool {
    let steps = ["fan-out to 333", "fan-out to 1000", "fan-out to 3333"];
    !steps.contains(&&*row.title)
}

fn plots(rows: &[Row]) -> Vec<(&'static str, String)> {
    let columns = || COLUMNS.iter().enumerate();
    let latency = columns().map(|(colour, (kind, name))| plot::Series {
        name,
        colour,
        points: (rows.iter())
            .filter(|row| row.key == "fan-out" && row.figure.starts_with("the last"))
            .filter_map(|row| Some((row.title.rsplit(' ').next()?.parse().ok()?, row.of(*kind)?)))
            .collect(),
    });
    let latency: Vec<_> = latency.filter(|series| !series.points.is_empty()).collect();
    let bars_of = |row: &Row, floor: Option<f64>| -> Vec<_> {
        let bars = columns().filter_map(|(colour, (kind, name))| Some((colour, *name, row.of(*kind)?)));
        bars.map(|(colour, name, value)| (colour, name, value / floor.unwrap_or(1.0))).collect()
    };
    let memory = rows.iter().filter(|row| row.figure.starts_with("resident per wait") && row.key != "million");
    let memory: Vec<_> = memory.map(|row| (row.title.clone(), bars_of(row, None))).collect();
    let costs =
        rows.iter().filter(|row| row.figure.starts_with("CPU") && row.of(Kind::Nchan).is_some() && is_told(row));
    let costs = costs.map(|row| {
        (format!("{}: {}", row.title, row.figure.trim_end_matches(", µs")), bars_of(row, row.of(Kind::FloorBytes)))
    });
    let costs: Vec<_> = costs.collect();
    vec![
        ("latency", plot::lines("The last of so many waiters has the message after", "waiters", "ms", &latency)),
        ("memory", plot::bars("Resident bytes of a parked request", &memory, None)),
        ("cost", plot::bars("Processor time, in parts of bare hyper's with the same bytes", &costs, Some(1.0))),
    ]
}
