//! The heap of a process of ours: what is freed goes back to the kernel.

/// Bounds what the heap of this process keeps for itself; to be called before it starts threads.
///
/// glibc gives each thread an arena of its own, up to eight for each processor, and each keeps what was freed in it:
/// a worker whose threads come and go held 10 MB where it used 4. And after the first large block that was freed,
/// blocks of that size come from the arenas, which only shrink at their ends.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    {
        // As many as work at a time mostly, so that they seldom wait for each other.
        const ARENAS: libc::c_int = 2;
        const LARGE: libc::c_int = 128 << 10;
        for (option, value) in [(libc::M_ARENA_MAX, ARENAS), (libc::M_MMAP_THRESHOLD, LARGE)] {
            // SAFETY: mallopt has no preconditions.
            unsafe {
                libc::mallopt(option, value);
            }
        }
    }
}

/// Hands memory that was freed back to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
