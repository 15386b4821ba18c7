//! The leases of one file, as both sides keep them.

use model::NodeId;

use super::Access;
use super::Extent;
use super::SessionId;
use super::Span;

/// A lease that may be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveLease {
    /// Whose.
    pub node: NodeId,
    /// In which session.
    pub session: SessionId,
    /// Its number in the session.
    pub number: u64,
    /// What for.
    pub access: Access,
    /// Which blocks.
    pub extent: Extent,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(Vec<LiveLease>);

impl Table {
    pub(super) fn all(&self) -> &[LiveLease] {
        &self.0
    }

    /// Adds one. What the same session had there before for no more than that gives way to it.
    pub(super) fn grant(&mut self, lease: LiveLease) {
        self.cut(lease.extent.span, |old| {
            old.session == lease.session && old.access <= lease.access
        });
        self.0.push(lease);
    }

    /// Sessions that hold something in this range.
    pub(super) fn holders(&self, span: Span) -> Vec<(NodeId, SessionId)> {
        let inside = self.0.iter().filter(|lease| lease.extent.span.overlaps(span));
        let mut holders: Vec<_> = inside.map(|lease| (lease.node, lease.session)).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// The session has given these back.
    pub(super) fn release(&mut self, session: SessionId, upto: u64, span: Span) {
        self.cut(span, |lease| lease.session == session && lease.number <= upto);
    }

    /// Drops all of a session: it is fenced.
    pub(super) fn drop_session(&mut self, session: SessionId) {
        self.0.retain(|lease| lease.session != session);
    }

    /// How many a session has.
    pub(super) fn count(&self, session: SessionId) -> usize {
        self.0.iter().filter(|lease| lease.session == session).count()
    }

    fn cut(&mut self, span: Span, gives_way: impl Fn(&LiveLease) -> bool) {
        let mut kept = Vec::with_capacity(self.0.len());
        for lease in self.0.drain(..) {
            if !gives_way(&lease) || !lease.extent.span.overlaps(span) {
                kept.push(lease);
                continue;
            }
            let whole = lease.extent.span;
            let before = Span { start: whole.start, count: span.start.saturating_sub(whole.start) };
            let after_start = span.end().min(whole.end());
            let after = Span { start: after_start, count: whole.end() - after_start };
            for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
                let device = lease.extent.device + (part.start - whole.start);
                kept.push(LiveLease { extent: Extent { span: part, device }, ..lease });
            }
        }
        self.0 = kept;
    }
}

#[cfg(test)]
mod tests {
    use model::NodeId;

    use super::super::Epoch;
    use super::*;

    fn lease(number: u64, start: u64, count: u64) -> LiveLease {
        LiveLease {
            node: NodeId::new(uuid::Uuid::from_u128(1)),
            session: SessionId { epoch: Epoch(1), number: 1 },
            number,
            access: Access::Write,
            extent: Extent { span: Span::new(start, count), device: 1_000 + start },
        }
    }

    #[test]
    fn a_release_in_the_middle_leaves_both_ends_where_they_lie() {
        let mut table = Table::default();
        table.grant(lease(1, 0, 10));
        table.release(lease(1, 0, 1).session, 1, Span::new(3, 4));
        let left: Vec<_> = table.all().iter().map(|lease| lease.extent).collect();
        let end = Extent { span: Span::new(7, 3), device: 1_007 };
        assert_eq!(left, [Extent { span: Span::new(0, 3), device: 1_000 }, end]);
    }

    #[test]
    fn a_late_release_leaves_newer_leases() {
        let mut table = Table::default();
        table.grant(lease(1, 0, 10));
        table.grant(lease(2, 5, 10));
        table.release(lease(1, 0, 1).session, 1, Span::from(0));
        assert_eq!(table.all(), [lease(2, 5, 10)]);
        assert_eq!(table.holders(Span::new(0, 5)), []);
        assert_eq!(table.holders(Span::new(14, 1)).len(), 1);
    }
}
