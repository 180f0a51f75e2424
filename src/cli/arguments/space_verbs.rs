//! The words of the verbs that change how much space a volume has or takes.

use clap::Args;

use super::{BackendOption, SlotOption};
use crate::cli::size::{NewSize, parse_new_size, parse_over_provisioning};
use crate::volume::create::OverProvisioning;

#[derive(Args, Debug)]
pub(in crate::cli) struct ResizeOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    /// Size that clients will see, e.g. 20G; or max: as large as the backend is, and never smaller than now
    #[arg(value_name = "SIZE", value_parser = parse_new_size)]
    pub(in crate::cli) size: NewSize,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Room for data on the store, in sizes of the volume, from 1.15 on; default: as the volume has it
    #[arg(long, value_parser = parse_over_provisioning, value_name = "FACTOR")]
    pub(in crate::cli) over_provisioning: Option<OverProvisioning>,
    /// Check and tell what would be done, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct CompactOptions {
    #[command(flatten)]
    pub(in crate::cli) backend: BackendOption,
    #[command(flatten)]
    pub(in crate::cli) slot: SlotOption,
    /// Percent of the segments in use that are to be live data: more takes longer, and gives more back
    #[arg(long, value_name = "PERCENT", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(in crate::cli) target: u64,
}
