//! Metadata contexts: there is one, `base:allocation` (proto.md "Metadata querying").

/// The name of the context.
pub(super) const ALLOCATION: &str = "base:allocation";
/// The number under which clients know it. Any would do; 0 is left to `NBD_OPT_LIST_META_CONTEXT`.
pub(super) const ALLOCATION_ID: u32 = 1;

/// What the queries are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// `NBD_OPT_LIST_META_CONTEXT`: no query means all, `base:` is a wildcard.
    List,
    /// `NBD_OPT_SET_META_CONTEXT`: no query and `base:` select nothing.
    Set,
}

/// Whether the queries name `base:allocation`; `None` when one has no namespace. Queries that
/// repeat each other name it once; unknown namespaces and leaves name nothing.
pub(super) fn names_allocation(queries: &[&str], purpose: Purpose) -> Option<bool> {
    if queries.iter().any(|query| !query.contains(':')) {
        return None;
    }
    Some(match purpose {
        Purpose::List => {
            queries.is_empty() || queries.iter().any(|query| *query == ALLOCATION || *query == "base:")
        }
        Purpose::Set => queries.contains(&ALLOCATION),
    })
}
