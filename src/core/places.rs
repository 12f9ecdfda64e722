//! Connections there may be at one time, all together and from one household: what stands before everything that a
//! stranger may open.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Told how many places are taken, whenever that changes.
pub type Level = Arc<dyn Fn(usize) + Send + Sync>;

/// Hands out places.
#[derive(Clone)]
pub struct Places {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    limits: PlaceLimits,
    level: Level,
}

#[derive(Clone, Copy, Debug)]
pub struct PlaceLimits {
    pub all: usize,
    /// For one [`household`].
    pub per_address: usize,
    /// Whether that holds for this machine, too. Where a proxy may stand, everybody comes from there.
    pub counts_loopback: bool,
}

/// One place; free again when dropped.
pub struct Place {
    caller: IpAddr,
    places: Places,
}

impl Places {
    pub fn new(limits: PlaceLimits, level: Level) -> Self {
        Self { taken: Arc::default(), limits, level }
    }

    /// A place for a caller, as [`household`] gives it, if there is one.
    pub fn take(&self, caller: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&caller).copied().unwrap_or(0);
        let is_limited = self.limits.counts_loopback || !caller.is_loopback();
        if all >= self.limits.all || (own >= self.limits.per_address && is_limited) {
            return None;
        }
        taken.insert(caller, own + 1);
        (self.level)(all + 1);
        Some(Place { caller, places: self.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.caller);
            }
        }
        (self.places.level)(taken.values().sum());
    }
}

/// What one household has: an IPv4 address, or an IPv6 network of 64 bits.
pub fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn four(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn places(all: usize, per_address: usize, counts_loopback: bool) -> (Places, Arc<AtomicUsize>) {
        let level = Arc::<AtomicUsize>::default();
        let told = Arc::clone(&level);
        let limits = PlaceLimits { all, per_address, counts_loopback };
        (Places::new(limits, Arc::new(move |taken| told.store(taken, Ordering::Relaxed))), level)
    }

    #[test]
    fn an_address_that_has_its_share_waits_while_others_come_in() {
        let (places, _) = places(8, 2, false);
        let first = places.take(four(1));
        let _second = places.take(four(1)).unwrap();
        assert!(places.take(four(1)).is_none());
        assert!(places.take(four(2)).is_some());
        drop(first);
        assert!(places.take(four(1)).is_some());
    }

    #[test]
    fn all_together_have_no_more_than_all_places() {
        let (places, level) = places(3, 2, false);
        let held: Vec<_> = (0..5).filter_map(|n| places.take(four(n))).collect();
        assert_eq!((held.len(), level.load(Ordering::Relaxed)), (3, 3));
        drop(held);
        assert_eq!(level.load(Ordering::Relaxed), 0);
        assert!(places.taken.lock().unwrap().is_empty(), "addresses are forgotten with their last connection");
    }

    #[test]
    fn a_proxy_on_this_machine_may_take_all_places_where_there_may_be_one() {
        for (counts_loopback, most) in [(false, 8), (true, 2)] {
            let (places, _) = places(8, 2, counts_loopback);
            let held: Vec<_> = (0..9).filter_map(|_| places.take([127, 0, 0, 1].into())).collect();
            assert_eq!(held.len(), most);
        }
    }

    #[test]
    fn an_ipv6_household_counts_as_one_and_a_mapped_address_as_ipv4() {
        let address = |text: &str| household(text.parse().unwrap());
        assert_eq!(address("2001:db8:1:2:aaaa::1"), address("2001:db8:1:2:bbbb::2"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_eq!(address("::ffff:192.0.2.1"), four(1));
        assert!(address("::1").is_loopback());
    }
}
