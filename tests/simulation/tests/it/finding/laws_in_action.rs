//! Programs that are made wrong on purpose: the laws notice.
