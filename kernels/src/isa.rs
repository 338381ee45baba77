//! Instruction-set levels of the vector kernels, found once at run time.

/// A vector level this machine is known to support. A value can only be had from the functions below, so that
/// holding one is the proof that its instructions may be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// The vector levels, from the plainest to the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Whatever the compilation target guarantees.
    Portable,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with the F, DQ, VL and BW subsets.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The widest level of this machine.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl")
                && std::arch::is_x86_feature_detected!("avx512bw")
            {
                return Isa(Level::Avx512);
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                return Isa(Level::Avx2);
            }
        }
        Isa(Level::Portable)
    }

    /// All levels of this machine, plainest first.
    pub fn available() -> Vec<Isa> {
        match Isa::best().0 {
            Level::Portable => vec![Isa(Level::Portable)],
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => vec![Isa(Level::Portable), Isa(Level::Avx2)],
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => vec![Isa(Level::Portable), Isa(Level::Avx2), Isa(Level::Avx512)],
        }
    }

    /// Name for reports: `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    /// The level.
    pub fn level(self) -> Level {
        self.0
    }
}

/// Defines functions whose body is compiled once per vector level. `fn name(isa; ..)` runs at the level that its
/// caller passes first; `fn name(..)` runs at the best level of the machine.
#[macro_export]
macro_rules! each_isa {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident (isa; $($arg:ident : $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        #[inline]
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $ty),*) {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw")]
            fn avx512($($arg: $ty),*) {
                body($($arg),*)
            }
            match isa.level() {
                // SAFETY: an `Isa` of this level exists only where the processor reports these features.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    )*};
    ($($(#[$doc:meta])* $vis:vis fn $name:ident ($($arg:ident : $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) {
            $crate::each_isa! { fn each(isa; $($arg: $ty),*) $body }
            each($crate::isa::Isa::best(), $($arg),*)
        }
    )*};
}
