//! Networks as quotas and caps count them: what one customer of a provider usually has.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The network of an address: /24 of IPv4, /56 of IPv6.
///
/// 24 or 56 bits of the address above a byte that tells the families apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(u64);

impl Network {
    const IPV4: u64 = 4;
    const IPV6: u64 = 6;

    /// The network of an address. IPv4 addresses in IPv6 clothing (`::ffff:a.b.c.d`) are IPv4.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(u64::from(u32::from(address) >> 8) << 8 | Self::IPV4),
            IpAddr::V6(address) => {
                // Proof: a 128-bit number shifted right by 64 has 64 bits.
                #[allow(clippy::cast_possible_truncation)]
                let upper = (u128::from(address) >> 64) as u64;
                Self(upper & !0xff | Self::IPV6)
            }
        }
    }

    /// As a number, other than 0 for every network.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`to_bits`](Self::to_bits); `None` for a number that is no network.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        matches!(bits & 0xff, Self::IPV4 | Self::IPV6).then_some(Self(bits))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 & 0xff == Self::IPV4 {
            let bits = u32::try_from(self.0 & 0xffff_ff00).unwrap_or(0);
            write!(f, "{}/24", Ipv4Addr::from(bits))
        } else {
            write!(f, "{}/56", Ipv6Addr::from(u128::from(self.0 & !0xff) << 64))
        }
    }
}
