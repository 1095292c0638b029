//! What std asks of an unwinder, for a program that aborts when it panics and holds no symbols that a backtrace could
//! name. So it needs no libgcc_s: to load that is a fifth of the time from exec to `main`. Tests, which unwind, and static
//! programs have libgcc's functions. The names are those of the Itanium C++ ABI, level I.

#![cfg(all(not(test), panic = "abort", not(target_feature = "crt-static")))]

use std::ffi::{c_int, c_void};

/// There are no frames to be shown: `_URC_END_OF_STACK`.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_: *const c_void, _: *mut c_void) -> c_int {
    5
}

/// Defines functions that nobody calls, since nothing is ever unwound.
macro_rules! never_called {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> ! {
                std::process::abort()
            }
        )*
    };
}

never_called! {
    _Unwind_GetDataRelBase _Unwind_GetIP _Unwind_GetIPInfo _Unwind_GetLanguageSpecificData _Unwind_GetRegionStart
    _Unwind_GetTextRelBase _Unwind_Resume _Unwind_SetGR _Unwind_SetIP
}
