//! A server's process, and what it has used, as the kernel counts it.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::Result;

/// A server in a process of its own, and perhaps the workers of that; ended with this.
pub struct Process {
    child: Child,
    pub addr: SocketAddr,
}

impl Process {
    /// Starts a server, and waits until it listens.
    pub fn start(command: &mut Command, addr: SocketAddr) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let mut process = Self { child, addr };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(addr).is_err() {
            if process.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(format!("{command:?} does not listen").into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    /// Processor time so far, in microseconds.
    pub fn cpu(&self) -> Result<f64> {
        let mut nanoseconds = 0.0;
        for pid in self.pids() {
            nanoseconds += cpu_of(&pid)?;
        }
        Ok(nanoseconds / 1e3)
    }

    /// Resident memory, in bytes; what workers share is counted once.
    pub fn memory(&self) -> Result<f64> {
        let mut kib = 0.0;
        for pid in self.pids() {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = text.lines().find(|line| line.starts_with("Pss:")).ok_or("no Pss")?;
            kib += line.split_whitespace().nth(1).ok_or("no Pss")?.parse::<f64>()?;
        }
        Ok(kib * 1024.0)
    }

    /// Waits until the server has done what it was sent: it has used no more than a housekeeper's time for a while.
    pub fn settle(&self) -> Result<()> {
        let mut quiet = 0;
        let mut last = self.cpu()?;
        for _ in 0..12_000 {
            sleep(Duration::from_millis(10));
            let now = self.cpu()?;
            quiet = if now - last < 300.0 { quiet + 1 } else { 0 };
            last = now;
            if quiet == 3 {
                return Ok(());
            }
        }
        Err("the server does not come to rest".into())
    }

    fn pids(&self) -> Vec<String> {
        let pid = self.child.id().to_string();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).chain([pid]).collect()
    }
}

/// Of all its threads, to the nanosecond: `utime` is in ticks of 10 ms.
fn cpu_of(pid: &str) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended since.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    }
    Ok(nanoseconds)
}

/// What the load has used so far, in microseconds.
pub fn own_cpu() -> Result<f64> {
    Ok(cpu_of(&std::process::id().to_string())? / 1e3)
}

impl Drop for Process {
    fn drop(&mut self) {
        // Workers end with their master if it is asked, and not if it is killed.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        for _ in 0..100 {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
