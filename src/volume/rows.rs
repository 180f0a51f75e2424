//! The rows of the segment table by handle, in pieces that a snapshot shares until they change: a root
//! can be written down part by part while the log goes on, without a second table in memory.

use std::sync::Arc;

use crate::format::page::Handle;
use crate::format::table::{PART_ROWS_MAX, Row, TablePart};

/// Rows of a piece: what is copied when a row changes that a snapshot shares, about 40 KiB.
const PIECE_ROWS: usize = 1000;
const _: () = assert!(PART_ROWS_MAX.is_multiple_of(PIECE_ROWS), "a part is a whole number of pieces");

/// Rows by handle. Handle 0 is never used. A clone is a snapshot and costs next to nothing.
#[derive(Clone)]
pub(super) struct Rows {
    pieces: Vec<Arc<[Option<Row>]>>,
    /// Handles given out so far, 0 and free ones included.
    len: usize,
}

impl Rows {
    /// No row.
    pub(super) fn new() -> Self {
        let mut rows = Self { pieces: Vec::new(), len: 0 };
        rows.push(None);
        rows
    }

    /// Handles given out so far, free ones included.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The row of a handle, if it is in use.
    pub(super) fn get(&self, handle: Handle) -> Option<&Row> {
        let handle = handle as usize;
        self.pieces.get(handle / PIECE_ROWS)?[handle % PIECE_ROWS].as_ref()
    }

    /// The place of a handle that was given out.
    ///
    /// # Panics
    /// When it was not.
    pub(super) fn at_mut(&mut self, handle: Handle) -> &mut Option<Row> {
        let handle = handle as usize;
        assert!(handle < self.len, "a handle that was given out");
        &mut Arc::make_mut(&mut self.pieces[handle / PIECE_ROWS])[handle % PIECE_ROWS]
    }

    /// Gives out the next handle.
    ///
    /// # Panics
    /// When there are 2^32 handles: there are fewer slots.
    pub(super) fn push(&mut self, row: Option<Row>) -> Handle {
        if self.len.is_multiple_of(PIECE_ROWS) {
            self.pieces.push(vec![None; PIECE_ROWS].into());
        }
        let handle = Handle::try_from(self.len).expect("there are fewer than 2^32 slots");
        self.len += 1;
        *self.at_mut(handle) = row;
        handle
    }

    /// Every row in use, by ascending handle.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &Row)> {
        (0u32..).zip(self.pieces.iter().flat_map(|piece| piece.iter())).filter_map(in_use)
    }

    /// Every row in use, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Row> {
        self.pieces.iter_mut().flat_map(|piece| Arc::make_mut(piece).iter_mut()).flatten()
    }

    /// Rows of each part that the table is stored in.
    pub(super) fn part_lens(&self) -> impl Iterator<Item = usize> + use<> {
        let len = self.len;
        (0..len).step_by(PART_ROWS_MAX).map(move |first| PART_ROWS_MAX.min(len - first))
    }

    /// The stored parts, without the rows `dead`, which ascend.
    pub(super) fn parts(&self, dead: &[Handle]) -> impl Iterator<Item = TablePart> {
        let firsts = (0..self.len).step_by(PART_ROWS_MAX);
        firsts.zip(self.part_lens()).map(|(first, len)| {
            let pieces = &self.pieces[first / PIECE_ROWS..];
            let mut rows: Vec<_> = pieces.iter().flat_map(|piece| piece.iter().copied()).take(len).collect();
            let first = Handle::try_from(first).expect("handles are u32");
            let from = dead.partition_point(|handle| *handle < first);
            let here = dead[from..].iter().map(|handle| (*handle - first) as usize);
            here.take_while(|row| *row < len).for_each(|row| rows[row] = None);
            TablePart { first, rows }
        })
    }
}

fn in_use((handle, row): (Handle, &Option<Row>)) -> Option<(Handle, &Row)> {
    Some((handle, row.as_ref()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cipher::Uid;
    use crate::format::segment::SegmentKind;
    use crate::format::table::SegmentState;

    fn row(live: u32) -> Row {
        let (kind, state) = (SegmentKind::Log, SegmentState::Closed);
        Row { uid: Uid::default(), phys: 0, epoch: 1, kind, state, live, bytes: u32::MAX, birth: 0 }
    }

    #[test]
    fn a_snapshot_stays_as_it_was_while_the_table_changes() {
        let mut rows = Rows::new();
        let count = 2 * u32::try_from(PART_ROWS_MAX).unwrap();
        for live in 1..count {
            assert_eq!(rows.push(Some(row(live))), live);
        }
        let snapshot = rows.clone();
        rows.at_mut(5).as_mut().unwrap().live = 0;
        *rows.at_mut(7) = None;
        rows.push(Some(row(count)));
        let dead = [1, 26_000, 51_999];
        let parts: Vec<_> = snapshot.parts(&dead).collect();
        assert_eq!(parts.iter().map(|part| part.first).collect::<Vec<_>>(), [0, 26_000]);
        let stored: Vec<_> = parts.into_iter().flat_map(|part| part.rows).collect();
        assert_eq!(stored.len(), count as usize);
        for (handle, stored) in (0u32..).zip(stored) {
            let expected = (handle != 0 && !dead.contains(&handle)).then(|| row(handle));
            assert_eq!(stored, expected, "row {handle}");
        }
        assert_eq!(rows.get(5).unwrap().live, 0);
        assert_eq!(rows.get(7), None);
        assert_eq!(rows.part_lens().collect::<Vec<_>>(), [26_000, 26_000, 1]);
    }
}
