//! The bounds of the engine, and what they are good for. All of them can be tuned without touching the mechanism.

use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Bounds on memory, connections and patience of one engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Fetches at a time. Prefetch gets at most half of them and background fill a quarter, so that a read of a
    /// container never waits for one of those to end.
    pub connections: usize,
    /// Fetches at a time of one layer, so that a stalled source leaves connections to the others.
    pub connections_per_layer: usize,
    /// Compressed plus inflated bytes that fetches may hold at a time. A single fetch larger than this runs alone; a
    /// range that is longer than a few MiB is never held as a whole, only what of it somebody waits for.
    pub in_flight_bytes: u64,
    /// Content kept in memory because it could not be written to the cache.
    pub memory_cache_bytes: u64,
    /// What the cache may occupy on disk; what was used longest ago makes room. `None`: as much as there is.
    pub cache_bytes: Option<u64>,
    /// Bytes of the disk that the cache leaves free: content is kept in memory then, as on a full disk.
    pub reserve_bytes: u64,
    /// Files of the cache that are kept open between reads, over all layers; and a fourth of that in segments.
    pub open_files: usize,
    /// Files of so many bytes and of one chunk are packed into segments; larger ones have a file each. 0: all have.
    pub packed_file_bytes: u32,
    /// Content of one segment: what is evicted together.
    pub segment_bytes: u32,
    /// Compressed bytes that prefetch, read-ahead and background fill ask for in one range at most.
    pub extent_bytes: u64,
    /// And how long the link may be busy with it: whoever wants the end of a range waits for all of it.
    pub extent_time: Duration,
    /// Below so many bytes a second the link is narrow: what nobody waits for gives way to reads.
    pub narrow_rate: u64,
    /// Compressed bytes between two wanted members that are fetched along rather than splitting the range.
    pub extent_gap: u64,
    /// Compressed bytes that a read fetches along at most on each side of what it wants; 0: nothing.
    pub widen_bytes: u64,
    /// Compressed bytes that may be fetched along and never used; reads fetch less along, the closer it gets to that.
    pub widen_base: u64,
    /// And so much for each byte that was needed.
    pub widen_share: f64,
    /// Compressed bytes that are fetched ahead of a reader who reads on and on, at most; 0: nothing.
    pub read_ahead_bytes: u64,
    /// A transfer that a reader waits for is raced by a second one when it brings nothing for four times as long as
    /// this source usually takes to answer, but not before this.
    pub stall_min: Duration,
    /// And then at the latest.
    pub stall_max: Duration,
    /// How long a read waits for a source that cannot be reached; `None`: as long as it takes.
    pub wait_limit: Option<Duration>,
    /// First pause after a failed fetch; doubled up to `retry_max`, with jitter.
    pub retry_min: Duration,
    /// Longest pause between two tries, also where the source asks for more.
    pub retry_max: Duration,
    /// How long a chunk stays refused that was corrupt twice: a bound on the load that a broken blob causes, and
    /// yet a repaired registry is noticed without a restart. After a refused range it is `retry_max`.
    pub refusal_memory: Duration,
    /// Background fill begins by itself this long after a layer was opened; `None`: only when told.
    pub background_after: Option<Duration>,
    /// Background fill that begins by itself waits until no read needed the network for this long.
    pub background_quiet: Duration,
    /// Pause of background fill when the cache cannot be written or the source does not answer.
    pub background_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16,
            connections_per_layer: 8,
            in_flight_bytes: 48 * MIB,
            memory_cache_bytes: 32 * MIB,
            cache_bytes: None,
            reserve_bytes: 0,
            open_files: 512,
            packed_file_bytes: 32 << 10,
            segment_bytes: 4 << 20,
            extent_bytes: 4 * MIB,
            extent_time: Duration::from_millis(200),
            narrow_rate: 8_000_000,
            extent_gap: 16 << 10,
            widen_bytes: 400 << 10,
            widen_base: 4 * MIB,
            widen_share: 0.6,
            read_ahead_bytes: 16 * MIB,
            stall_min: Duration::from_millis(500),
            stall_max: Duration::from_secs(2),
            wait_limit: None,
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(15),
            refusal_memory: Duration::from_secs(600),
            background_after: Some(Duration::from_secs(10)),
            background_quiet: Duration::from_secs(2),
            background_pause: Duration::from_secs(30),
        }
    }
}
