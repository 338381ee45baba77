//! The allocator of a party's process, and what the system allows it.
//!
//! A step allocates and frees tensors of the same sizes again and again. By default the C library returns every block
//! above a threshold to the kernel, and clearing pages anew takes more time than the step itself. So blocks are kept from
//! step to step, and given back between sessions.

/// Gives freed blocks back to the kernel, after a session: the next one may come much later, or need far less.
pub fn return_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim takes a number of bytes to keep, and touches free memory alone.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Memory of this machine in bytes, or of the control group that the process is in, if that is less. Where the system does
/// not say, 16 GiB.
pub fn machine_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:").map(str::to_owned))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let group = |path: &str| read(path).and_then(|text| text.trim().parse::<u64>().ok());
    let groups = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"].map(group);
    groups.into_iter().flatten().chain(total).min().unwrap_or(16 << 30)
}

/// Lets this process have at most `bytes` of memory from now on, counted as addresses. Where the system has no such limit
/// it does nothing.
///
/// # Errors
/// The system's.
pub fn limit_addresses(bytes: u64) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit writes the structure that it is given, and keeps no pointer.
        if unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        limit.rlim_cur = bytes.min(limit.rlim_max);
        // SAFETY: setrlimit reads the structure that it is given, and keeps no pointer.
        if unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
    Ok(())
}

/// Lets this process have as many open files as the system allows: a session takes four connections. Gives their number,
/// where the system has one.
pub fn raise_open_files() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit writes the structure that it is given, and keeps no pointer.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
            return None;
        }
        let before = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit reads the structure that it is given, and keeps no pointer.
        let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0;
        Some(if raised { limit.rlim_max } else { before })
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Lets the C library's allocator keep and reuse freed blocks of up to 32 MiB. Elsewhere it does nothing.
///
/// Call it first in `main`: it holds for blocks that are allocated later.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const KEEP: [(libc::c_int, libc::c_int); 4] = [
            (libc::M_MMAP_THRESHOLD, 32 << 20),
            (libc::M_TRIM_THRESHOLD, i32::MAX),
            (libc::M_TOP_PAD, 64 << 20),
            (libc::M_ARENA_MAX, 1),
        ];
        for (parameter, value) in KEEP {
            // SAFETY: mallopt takes two integers and keeps no pointer; a value it does not take leaves the default.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}
