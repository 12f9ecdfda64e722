//! H.264 byte streams (ITU-T H.264, annex B): finding NAL units, access units and what a picture's SPS promises.
//!
//! Reads whatever bytes it is given without panicking; it is a fuzz target.

use std::ops::Range;

use bytes::Bytes;

/// `nal_unit_type`, ITU-T H.264, table 7-1.
pub mod nal_type {
    pub const SLICE: u8 = 1;
    pub const IDR_SLICE: u8 = 5;
    pub const SEI: u8 = 6;
    pub const SPS: u8 = 7;
    pub const PPS: u8 = 8;
    pub const ACCESS_UNIT_DELIMITER: u8 = 9;
}

/// The NAL units of a byte stream, without start codes and trailing zeros; empty ones are left out.
pub fn nal_units(stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    NalRanges::new(stream).map(|range| &stream[range.payload])
}

/// What an access unit consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Holds a slice of an IDR picture.
    pub idr: bool,
    /// Holds a slice of any other picture.
    pub slice: bool,
    pub sps: bool,
    pub pps: bool,
}

impl Contents {
    pub fn of(access_unit: &[u8]) -> Self {
        let mut contents = Self::default();
        for nal in nal_units(access_unit) {
            match nal_type_of(nal) {
                nal_type::IDR_SLICE => contents.idr = true,
                // Partitioned slices (types 2 to 4) are pictures too, though no profile of ours has them.
                nal_type::SLICE..=4 => contents.slice = true,
                nal_type::SPS => contents.sps = true,
                nal_type::PPS => contents.pps = true,
                _ => {}
            }
        }
        contents
    }

    /// A decoder that knows nothing yet can start here.
    pub fn is_keyframe(self) -> bool {
        self.idr && self.sps && self.pps
    }
}

/// Cuts a byte stream into access units (ITU-T H.264, section 7.4.1.2.3), each with its own start codes; shares the memory.
///
/// Bytes before the first start code belong to no unit and are left out.
pub fn access_units(stream: &Bytes) -> Vec<Bytes> {
    let mut units = Vec::new();
    let mut unit_start = None;
    let mut picture_seen = false;
    for range in NalRanges::new(stream) {
        let nal = &stream[range.payload.clone()];
        let nal_type = nal_type_of(nal);
        let is_slice = matches!(nal_type, nal_type::SLICE..=nal_type::IDR_SLICE);
        let starts_unit = match nal_type {
            // first_mb_in_slice is the slice header's first field, ue(v): a leading 1 bit is the number 0.
            _ if is_slice => nal.get(1).is_some_and(|byte| byte & 0x80 != 0),
            nal_type::SEI..=nal_type::ACCESS_UNIT_DELIMITER | 14..=18 => true,
            _ => false,
        };
        match unit_start {
            None => unit_start = Some(range.start),
            Some(start) if picture_seen && starts_unit => {
                units.push(stream.slice(start..range.start));
                unit_start = Some(range.start);
                picture_seen = false;
            }
            Some(_) => {}
        }
        picture_seen |= is_slice;
    }
    if let Some(start) = unit_start {
        units.push(stream.slice(start..));
    }
    units
}

/// What a sequence parameter set says of the pictures (ITU-T H.264, section 7.3.2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sps {
    pub profile_idc: u8,
    /// `constraint_set0_flag` is the highest bit.
    pub constraint_flags: u8,
    pub level_idc: u8,
    /// Cropped, in pixels.
    pub width: u32,
    pub height: u32,
}

impl Sps {
    /// The first parameter set of a stream; `None` when there is none, or none that can be read.
    pub fn find(stream: &[u8]) -> Option<Self> {
        nal_units(stream).filter(|nal| nal_type_of(nal) == nal_type::SPS).find_map(Self::parse)
    }

    /// Baseline without its arbitrary slice order, redundant slices and flexible macroblock order: what every browser decodes.
    pub fn is_constrained_baseline(&self) -> bool {
        const CONSTRAINT_SET1: u8 = 0x40;
        self.profile_idc == 66 && self.constraint_flags & CONSTRAINT_SET1 != 0
    }

    /// Reads one NAL unit of type 7.
    pub fn parse(nal: &[u8]) -> Option<Self> {
        let [header, profile_idc, constraint_flags, level_idc, rest @ ..] = nal else { return None };
        if header & 0x1f != nal_type::SPS {
            return None;
        }
        let mut bits = Bits::new(rest);
        bits.ue()?; // seq_parameter_set_id
        let mut chroma_format = 1;
        if matches!(profile_idc, 44 | 83 | 86 | 100 | 110 | 118 | 122 | 128 | 134 | 135 | 138 | 139 | 244) {
            chroma_format = bits.ue()?;
            if chroma_format == 3 {
                bits.u1()?; // separate_colour_plane_flag
            }
            bits.ue()?; // bit_depth_luma_minus8
            bits.ue()?; // bit_depth_chroma_minus8
            bits.u1()?; // qpprime_y_zero_transform_bypass_flag
            if bits.u1()? == 1 {
                for list in 0..if chroma_format == 3 { 12 } else { 8 } {
                    if bits.u1()? == 1 {
                        bits.skip_scaling_list(if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        bits.ue()?; // log2_max_frame_num_minus4
        match bits.ue()? {
            0 => {
                bits.ue()?; // log2_max_pic_order_cnt_lsb_minus4
            }
            1 => {
                bits.u1()?; // delta_pic_order_always_zero_flag
                bits.ue()?; // offset_for_non_ref_pic, se(v) is as long as ue(v)
                bits.ue()?; // offset_for_top_to_bottom_field
                for _ in 0..bits.ue()?.min(255) {
                    bits.ue()?; // offset_for_ref_frame
                }
            }
            _ => {}
        }
        bits.ue()?; // max_num_ref_frames
        bits.u1()?; // gaps_in_frame_num_value_allowed_flag
        let width_in_mbs = bits.ue()?.checked_add(1)?;
        let height_in_map_units = bits.ue()?.checked_add(1)?;
        let frame_mbs_only = bits.u1()?;
        if frame_mbs_only == 0 {
            bits.u1()?; // mb_adaptive_frame_field_flag
        }
        bits.u1()?; // direct_8x8_inference_flag
        let (mut crop_x, mut crop_y) = (0u32, 0u32);
        if bits.u1()? == 1 {
            let (left, right, top, bottom) = (bits.ue()?, bits.ue()?, bits.ue()?, bits.ue()?);
            // Table 6-1: in which steps a chroma format can be cropped.
            let (unit_x, unit_y) = match chroma_format {
                1 => (2, 2),
                2 => (2, 1),
                _ => (1, 1),
            };
            crop_x = left.checked_add(right)?.checked_mul(unit_x)?;
            crop_y = top.checked_add(bottom)?.checked_mul(unit_y)?.checked_mul(2 - frame_mbs_only)?;
        }
        let width = width_in_mbs.checked_mul(16)?.checked_sub(crop_x)?;
        let height = height_in_map_units.checked_mul(16)?.checked_mul(2 - frame_mbs_only)?.checked_sub(crop_y)?;
        Some(Self {
            profile_idc: *profile_idc,
            constraint_flags: *constraint_flags,
            level_idc: *level_idc,
            width,
            height,
        })
    }
}

/// `nal_unit_type` of a NAL unit without its start code; 0 (unspecified) for an empty one.
pub fn nal_type_of(nal: &[u8]) -> u8 {
    nal.first().map_or(0, |header| header & 0x1f)
}

/// Where one NAL unit lies in its stream.
struct NalRange {
    /// Of its start code, the leading zero byte of a long one included.
    start: usize,
    payload: Range<usize>,
}

struct NalRanges<'a> {
    stream: &'a [u8],
    /// Where the start code of the next NAL unit lies.
    next: Option<usize>,
}

impl<'a> NalRanges<'a> {
    fn new(stream: &'a [u8]) -> Self {
        Self { stream, next: find_start_code(stream, 0) }
    }
}

impl Iterator for NalRanges<'_> {
    type Item = NalRange;

    fn next(&mut self) -> Option<NalRange> {
        loop {
            let code = self.next?;
            let begin = code + 3;
            self.next = find_start_code(self.stream, begin);
            let mut end = self.next.unwrap_or(self.stream.len());
            // The last byte of a NAL unit is never zero: zeros before a start code are padding or its fourth byte.
            while end > begin && self.stream[end - 1] == 0 {
                end -= 1;
            }
            if end > begin {
                let start = if code > 0 && self.stream[code - 1] == 0 { code - 1 } else { code };
                return Some(NalRange { start, payload: begin..end });
            }
        }
    }
}

/// The place of the next three bytes 0, 0, 1.
fn find_start_code(stream: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    // The third byte says how far the next start code can be at the nearest.
    while let Some(&third) = stream.get(at + 2) {
        match third {
            0 => at += 1,
            1 if stream[at] == 0 && stream[at + 1] == 0 => return Some(at),
            _ => at += 3,
        }
    }
    None
}

/// The bits of a NAL unit's payload, emulation prevention bytes (section 7.4.1) left out.
struct Bits<'a> {
    rest: std::slice::Iter<'a, u8>,
    zeros: u32,
    current: u8,
    left: u32,
}

impl<'a> Bits<'a> {
    fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload.iter(), zeros: 0, current: 0, left: 0 }
    }

    fn u1(&mut self) -> Option<u32> {
        if self.left == 0 {
            let mut byte = *self.rest.next()?;
            if self.zeros >= 2 && byte == 3 {
                self.zeros = 0;
                byte = *self.rest.next()?;
            }
            self.zeros = if byte == 0 { self.zeros + 1 } else { 0 };
            self.current = byte;
            self.left = 8;
        }
        self.left -= 1;
        Some(u32::from(self.current >> self.left & 1))
    }

    /// ue(v), section 9.1.
    fn ue(&mut self) -> Option<u32> {
        let mut leading_zeros = 0;
        while self.u1()? == 0 {
            leading_zeros += 1;
            if leading_zeros > 31 {
                return None;
            }
        }
        let mut suffix = 0u32;
        for _ in 0..leading_zeros {
            suffix = suffix << 1 | self.u1()?;
        }
        Some((1u32 << leading_zeros) - 1 + suffix)
    }

    /// se(v), section 9.1.1.
    fn se(&mut self) -> Option<i32> {
        let code = self.ue()?;
        let magnitude = i32::try_from(code.div_ceil(2)).ok()?;
        Some(if code % 2 == 1 { magnitude } else { -magnitude })
    }

    /// scaling_list(), section 7.3.2.1.1.1.
    fn skip_scaling_list(&mut self, size: usize) -> Option<()> {
        let (mut last, mut next) = (8i32, 8i32);
        for _ in 0..size {
            if next != 0 {
                next = last.wrapping_add(self.se()?).rem_euclid(256);
            }
            last = if next == 0 { last } else { next };
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUD: &[u8] = &[0, 0, 0, 1, 9, 0x10];
    // From x264, 1280x720, constrained baseline, level 3.1.
    const SPS_720P: &[u8] = &[
        0, 0, 0, 1, 0x67, 0x42, 0xc0, 0x1f, 0xd9, 0x00, 0x50, 0x05, 0xbb, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10,
        0x00, 0x00, 0x03, 0x03, 0xc0, 0xf1, 0x83, 0x24, 0x80,
    ];
    const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xcb, 0x83, 0xcb, 0x20];
    const IDR: &[u8] = &[0, 0, 1, 0x65, 0x88, 0x84, 0x21];
    const IDR_SECOND_SLICE: &[u8] = &[0, 0, 1, 0x65, 0x44, 0x84, 0x21];
    const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9a, 0x24];

    #[test]
    fn a_stream_is_cut_where_pictures_begin() {
        let keyframe = [AUD, SPS_720P, PPS, IDR, IDR_SECOND_SLICE].concat();
        let stream = Bytes::from([&keyframe, P, P, &keyframe].concat());
        let units = access_units(&stream);
        assert_eq!(units, [&keyframe[..], P, P, &keyframe]);
    }

    #[test]
    fn slices_of_one_picture_stay_together() {
        let stream = Bytes::from([IDR, IDR_SECOND_SLICE, IDR_SECOND_SLICE, P].concat());
        assert_eq!(access_units(&stream).len(), 2);
    }

    #[test]
    fn a_keyframe_is_an_idr_picture_with_both_parameter_sets() {
        assert!(Contents::of(&[SPS_720P, PPS, IDR].concat()).is_keyframe());
        assert!(!Contents::of(&[PPS, IDR].concat()).is_keyframe());
        assert!(!Contents::of(&[SPS_720P, PPS, P].concat()).is_keyframe());
        assert_eq!(Contents::of(P), Contents { slice: true, ..Contents::default() });
    }

    #[test]
    fn trailing_zeros_belong_to_no_nal_unit() {
        let stream = [0, 0, 1, 0x41, 7, 0, 0, 0, 0, 1, 0x41, 8, 0, 0];
        assert_eq!(nal_units(&stream).collect::<Vec<_>>(), [[0x41, 7], [0x41, 8]]);
    }

    #[test]
    fn the_sps_tells_size_and_profile() {
        let sps = Sps::find(&[AUD, SPS_720P, PPS, IDR].concat()).unwrap();
        assert_eq!((sps.width, sps.height), (1280, 720));
        assert!(sps.is_constrained_baseline());
        assert_eq!(sps.level_idc, 31);
    }

    #[test]
    fn an_sps_cut_off_before_its_picture_size_is_no_sps() {
        for len in 0..9 {
            assert_eq!(Sps::parse(&SPS_720P[4..4 + len]), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in stream_like()) {
            let _ = Sps::find(&bytes);
            let _ = Contents::of(&bytes);
        }

        #[test]
        fn cutting_loses_nothing_after_the_first_start_code(bytes in stream_like()) {
            let stream = Bytes::from(bytes);
            let whole: Vec<u8> = access_units(&stream).concat();
            prop_assert!(stream.ends_with(&whole));
            prop_assert!(nal_units(&stream).eq(nal_units(&whole)));
        }

        #[test]
        fn cutting_a_cut_stream_changes_nothing(bytes in stream_like()) {
            for unit in access_units(&Bytes::from(bytes)) {
                prop_assert_eq!(access_units(&unit), vec![unit.clone()]);
            }
        }
    }

    /// Random bytes in which start codes and slice headers are frequent.
    fn stream_like() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![3 => Just(0u8), 2 => Just(1u8), 1 => Just(0x67), 1 => Just(0x65), 1 => Just(0x41), 2 => any::<u8>()];
        prop::collection::vec(byte, 0..300)
    }
}
