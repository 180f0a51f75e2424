//! What is written, so that it can be told from the bytes alone who wrote it and where: every 512 bytes carry
//! the number of the request and their own address.

/// The unit of clients' requests and of torn writes.
pub const UNIT: usize = 512;
/// [`UNIT`] as an offset.
pub const UNIT_BYTES: u64 = 512;
/// Units of a sector, the unit that never mixes.
pub const SECTOR_UNITS: usize = 8;

/// Number of a request that changes something; 0 stands for zeros that nobody wrote.
pub type OpId = u32;

/// What a unit holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// Zeros.
    Zero,
    /// What that request wrote there.
    Of(OpId),
}

/// Fills whole units from byte `offset` of the export on with what request `op` writes there.
pub fn fill(buf: &mut [u8], offset: u64, op: OpId) {
    for (index, unit) in (0u64..).zip(buf.chunks_exact_mut(UNIT)) {
        unit.copy_from_slice(&unit_of(op, offset + index * UNIT_BYTES));
    }
}

/// What the unit at `offset` holds; `None` when its bytes are nobody's.
#[must_use]
pub fn value_of(unit: &[u8], offset: u64) -> Option<Value> {
    let op = OpId::from_le_bytes(unit[..4].try_into().expect("four bytes"));
    if op == 0 {
        return (unit == [0; UNIT]).then_some(Value::Zero);
    }
    (unit == unit_of(op, offset)).then_some(Value::Of(op))
}

fn unit_of(op: OpId, offset: u64) -> [u8; UNIT] {
    let [low, high, ..] = op.wrapping_mul(0x9e37_79b9).to_le_bytes();
    let mut unit = [low ^ high | 1; UNIT];
    unit[..4].copy_from_slice(&op.to_le_bytes());
    unit[4..12].copy_from_slice(&offset.to_le_bytes());
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_tells_who_wrote_it_and_where() {
        let mut buf = vec![0; 2 * UNIT];
        assert_eq!(value_of(&buf[..UNIT], 0), Some(Value::Zero));
        fill(&mut buf, 4096, 7);
        assert_eq!(value_of(&buf[..UNIT], 4096), Some(Value::Of(7)));
        assert_eq!(value_of(&buf[UNIT..], 4096 + 512), Some(Value::Of(7)));
        assert_eq!(value_of(&buf[UNIT..], 4096), None, "moved");
        buf[100] ^= 1;
        assert_eq!(value_of(&buf[..UNIT], 4096), None, "torn");
        buf.fill(0);
        buf[9] = 1;
        assert_eq!(value_of(&buf[..UNIT], 4096), None);
    }
}
