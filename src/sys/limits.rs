//! What this process may use: open files, and memory that is given back.

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many open files this process may have.
pub fn open_files_max() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(own, _)| usize::try_from(own).unwrap_or(usize::MAX))
}

/// The limit of open files that servers are started with; `u64::MAX` stands for our own.
static FILES: AtomicU64 = AtomicU64::new(u64::MAX);

/// Raises the limit of open files as far as it goes, for this process and not for its servers. In a swap a supervisor
/// holds the listeners of two servers, and each of them may be near the limit.
pub fn raise_files() {
    if let Ok((own, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && setrlimit(Resource::RLIMIT_NOFILE, most, most).is_ok()
    {
        FILES.store(own, Ordering::Relaxed);
    }
}

/// The child's side of [`raise_files`]. Async-signal-safe.
pub(super) fn lower_files() {
    let own = FILES.load(Ordering::Relaxed);
    if own != u64::MAX
        && let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, own.min(most), most);
    }
}

/// Keeps the memory of a process with many small threads small: one malloc arena for all (glibc).
/// Call it before the first thread starts.
pub fn save_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what was only needed until now: free heap, and the pages of code and constants, most of which were needed
/// once. What runs again comes back from the page cache.
pub fn shed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only returns free memory.
    unsafe {
        libc::malloc_trim(0);
    }
    drop_pages(&never_written());
}

/// Where code and constants of this program and its libraries lie: every loaded segment that may not be written.
pub(super) fn never_written() -> Vec<Range<usize>> {
    unsafe extern "C" fn note(object: *mut libc::dl_phdr_info, _: usize, ranges: *mut libc::c_void) -> libc::c_int {
        // SAFETY: dl_iterate_phdr(3) gives an object with as many headers as it says, and what was given to it.
        let (object, headers, ranges) = unsafe {
            let headers = std::slice::from_raw_parts((*object).dlpi_phdr, (*object).dlpi_phnum.into());
            (&*object, headers, &mut *ranges.cast::<Vec<Range<usize>>>())
        };
        // SAFETY: a plain call.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
            let from = (object.dlpi_addr + header.p_vaddr) as usize;
            ranges.push(from & !(page - 1)..from + header.p_memsz as usize);
        }
        0
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    // SAFETY: the function is called before this one returns, with the pointer that it expects.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut ranges).cast()) };
    ranges
}

/// Gives back pages that have not been changed and can be read from their files again. Async-signal-safe.
pub(super) fn drop_pages(never_written: &[Range<usize>]) {
    for range in never_written {
        // SAFETY: the range is a mapping of a file that may only be read: a dropped page reads the same when it
        // is faulted in again.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}
