//! Which of a viewer's reports tell of the path that its stream goes by now.
//!
//! A report counts what was lost since the one before it (RFC 3550, section 6.4.1). The first after a change of path counts what
//! was sent into the old one too, which may be seconds of the stream: taken for a loss on the new path it would stop the pictures
//! that have only just come back.

/// The newest report, and where the path begins.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// What the newest report counts up to: the extended highest sequence number received.
    up_to: Option<u32>,
    /// The last packet before this path, until a report ends past it.
    former: Option<u16>,
}

impl Reports {
    /// The stream goes by another path from here on; `last` is the packet that was sent last.
    pub(super) fn begin_path(&mut self, last: Option<u16>) {
        self.former = last;
    }

    /// Whether a report tells something about this path. One in which nothing new arrived tells nothing.
    pub(super) fn take(&mut self, up_to: u32) -> bool {
        let before = self.up_to.replace(up_to);
        if before == Some(up_to) {
            return false;
        }
        let is_past = |last: u16| before.is_some_and(|before| (before as u16).wrapping_sub(last) < 1 << 15);
        self.former.take_if(|last| is_past(*last));
        self.former.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_first_path_every_report_that_says_something_new_tells() {
        let mut reports = Reports::default();
        reports.begin_path(None);
        assert_eq!([10, 20, 20, 30].map(|up_to| reports.take(up_to)), [true, true, false, true]);
    }

    #[test]
    fn after_a_change_of_path_only_reports_that_count_nothing_of_before_tell() {
        let mut reports = Reports::default();
        for start in [100, 65_530, (1 << 16) + 30] {
            reports.take(start);
            let last = (start + 5) as u16;
            reports.begin_path(Some(last));
            let told = [start + 2, start + 40, start + 80].map(|up_to| reports.take(up_to));
            assert_eq!(told, [false, false, true], "on its way, across the change, after it");
        }
    }

    #[test]
    fn a_path_may_last_for_many_rounds_of_sequence_numbers() {
        let mut reports = Reports::default();
        reports.take(7);
        reports.begin_path(Some(9));
        assert!(!reports.take(1000));
        assert!((2..1000).all(|report| reports.take(report * 1000)));
    }
}
