//! This node among the others: its place, its peer port, calls to the others, who votes.
//!
//! ```text
//!   place      what is on this disk: key, certificate, CA; the marks of a join and of a reset
//!   peers      the peer port and calls to others; the way of the log's messages
//!   join       a host asks to be taken in; a member takes it in
//!   members    the leader brings the log's members to what the state says
//!   witness    a voter that is no node
//!   leave      a node that has left begins anew
//!   force      those that are left of a cluster go on without a majority
//!   out        a node that was evicted or given up takes part in nothing any more
//!   rebuild    a node that has lost its log gets a new one from the others
//!   renew      certificates that renew themselves
//!   status     how the cluster is, in words
//!   forward    requests of the API that only another node can answer
//! ```

pub(crate) mod force;
pub(crate) mod forward;
pub(crate) mod join;
pub(crate) mod leave;
pub(crate) mod members;
pub(crate) mod networks;
pub(crate) mod out;
pub(crate) mod peers;
pub(crate) mod place;
pub(crate) mod rebuild;
pub(crate) mod renew;
pub(crate) mod status;
pub(crate) mod witness;
mod words;

pub(crate) use peers::Peers;
pub(crate) use place::Place;
pub(crate) use place::PlaceDir;
pub(crate) use witness::Witness;
