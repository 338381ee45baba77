//! The allocator of a party's process.
//!
//! A step allocates and frees tensors of the same sizes again and again. By default the C library returns every block
//! above a threshold to the kernel, and clearing pages anew takes more time than the step itself.

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
