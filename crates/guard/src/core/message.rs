//! What travels between guards, and between a fencer and guards. Who sent it is known from how it came, not from what it says.

use std::time::Duration;

use crate::core::id::{Epoch, HostId};
use crate::core::time::BootInstant;

/// One datagram. All may be lost, doubled, late and out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// The sender asks for its lease: "promise for this long, from when you read this, to let nobody take my VMs".
    Renew { epoch: Epoch, seq: u64, promise: Duration },
    /// The voter has promised.
    RenewAck { epoch: Epoch, seq: u64 },
    /// The voter has promised somebody else that no epoch up to `fenced` is renewed.
    RenewNack { epoch: Epoch, seq: u64, fenced: Epoch },
    /// The sender has stopped all VMs of this epoch and will not renew it again.
    Release { epoch: Epoch },
    /// A fencer wants nobody to renew `host` up to `epoch`. `tau` is its own clock, to be echoed.
    Fence { host: HostId, epoch: Epoch, tau: BootInstant },
    /// The voter will not renew it, and what it had promised is over.
    FenceAck { host: HostId, epoch: Epoch, tau: BootInstant },
    /// When did you last hear from `host`?
    Query { host: HostId, tau: BootInstant },
    /// So long ago, or longer: a voter that has heard nothing says how long it has listened.
    LastSeen { host: HostId, tau: BootInstant, epoch: Epoch, age: Duration },
}
