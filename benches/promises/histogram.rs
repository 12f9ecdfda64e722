//! A Prometheus histogram, read back from its text form.

#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    /// Upper bound and cumulative count, ascending.
    buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// All series of this name, added up; `None`: there is none.
    pub(crate) fn read(metrics: &str, name: &str) -> Option<Self> {
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_bucket{")) else { continue };
            let (labels, count) = rest.rsplit_once("} ")?;
            let bound = labels.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'))?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            let count: u64 = count.split(' ').next()?.parse().ok()?;
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, total)) => *total += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        (!buckets.is_empty()).then_some(Self { buckets })
    }

    /// What came in after `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&before.buckets).map(|(&(bound, now), &(_, then))| (bound, now - then));
        Self { buckets: buckets.collect() }
    }

    /// Linear between the bounds of a bucket, as Prometheus does it.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let &(_, total) = self.buckets.last()?;
        if total == 0 {
            return None;
        }
        let rank = total as f64 * q;
        let (mut low, mut below) = (0.0, 0);
        for &(bound, count) in &self.buckets {
            if count as f64 >= rank {
                if bound.is_infinite() {
                    return Some(low);
                }
                let share = (rank - below as f64) / (count - below).max(1) as f64;
                return Some(low + (bound - low) * share);
            }
            (low, below) = (bound, count);
        }
        None
    }
}
