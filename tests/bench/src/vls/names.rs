//! The figures of `vls`, in the order in which they come: what can be measured alone, and what the test expects.

/// Those that ask a server, which they have in common.
pub(crate) const LOOKUPS: &[&str] = &[
    "lookup_cold_vs_echo",
    "lookup_cold_vs_knot",
    "dns_udp",
    "http_get",
    "lookup_many_64",
    "overload_p99",
    "resident_1m",
];

/// Those among them that need a program which not everybody has.
pub(crate) const AGAINST_KNOT: &[&str] = &["lookup_cold_vs_knot", "dns_udp"];

/// Those that ask nobody.
pub(crate) const OTHERS: &[&str] = &["record_memory", "restart_1m", "register_durable"];
