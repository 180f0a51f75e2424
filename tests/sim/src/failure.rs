//! What a run ends with when something that must not happen did.

use std::fmt;

/// An invariant that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its name (docs/FORMAT.md §16), or what was to be expected.
    pub invariant: &'static str,
    /// What was found instead.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// A violation and the step after which it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Number of the step; as many as there are steps for the verification at the end.
    pub step: usize,
    /// What is wrong.
    pub violation: Violation,
}
