//! Words of the API about what machines and nodes used: the present second, and the last year.

use model::Name;
use model::UnixMillis;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// What is measured.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Processor time, in percent of one host processor.
    CpuPercent,
    /// Memory of the host that it takes, in bytes.
    Memory,
    /// Memory that it needs, in bytes: of a machine, what its guest says it uses; of a node, what its
    /// machines may use.
    MemoryDemand,
    /// Bytes per second that were read from disks.
    DiskRead,
    /// Bytes per second that were written to disks.
    DiskWritten,
    /// Bytes per second that it received from networks.
    NetReceived,
    /// Bytes per second that it sent to networks.
    NetSent,
    /// Share of time in which something of it waited for a processor, in percent.
    CpuPressure,
    /// Share of time in which something of it waited for memory, in percent.
    MemoryPressure,
    /// Share of time in which something of it waited for disks, in percent.
    IoPressure,
}

impl Figure {
    /// All of them, in the order in which they are kept. New ones go to the end, and raise the version of
    /// the files.
    pub const ALL: [Self; 10] = [
        Self::CpuPercent,
        Self::Memory,
        Self::MemoryDemand,
        Self::DiskRead,
        Self::DiskWritten,
        Self::NetReceived,
        Self::NetSent,
        Self::CpuPressure,
        Self::MemoryPressure,
        Self::IoPressure,
    ];
}

/// Which time to show, and how finely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MetricsQuery {
    /// From when, in milliseconds since 1970; ten minutes before `to` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<UnixMillis>,
    /// Until when; now if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<UnixMillis>,
    /// Seconds of one point: 1 (kept for 10 minutes), 10 (2 hours), 60 (2 days), 600 (30 days) or 3600 (a
    /// year). The finest that reaches back to `from` in at most 1,500 points if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution_s: Option<u64>,
}

/// What was used in a time. Point `n` of each list begins at `from` plus `n` times the resolution.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct MetricsView {
    /// When the first point begins.
    pub from: UnixMillis,
    /// Seconds of one point.
    pub resolution_s: u64,
    /// How many points each list has.
    pub points: u64,
    /// The figures. One of which nothing was measured in all that time is left out.
    pub series: Vec<SeriesView>,
    /// Nodes that may have a part of this and did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<Name>,
}

/// One figure over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SeriesView {
    /// What it is, and in which unit.
    pub figure: Figure,
    /// The mean of each point; null where nothing was measured.
    pub mean: Vec<Option<f64>>,
    /// The highest second of each point.
    pub peak: Vec<Option<f64>>,
}
