//! SHA-256 of two messages at once by the SHA extensions of x86-64 (Intel SDM volume 2, `SHA256RNDS2`).
//!
//! A round waits for the one before it: one message leaves half of the unit idle. A layer needs two digests over the same bytes,
//! its own and each 4 KiB block's, whose 64-byte blocks coincide. So both advance together, over one message schedule, in the
//! time of one. ring's assembly takes one message at a time; it stays the oracle in tests, and what hashes elsewhere.

/// The chaining value before the first block (FIPS 180-4 section 5.3.3).
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Length of a block of the compression function.
const BLOCK: usize = 64;

/// A chaining value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State([u32; 8]);

impl State {
    pub(crate) fn new() -> State {
        State(START)
    }

    pub(crate) fn bytes(&self) -> [u8; 32] {
        let mut out = [0; 32];
        for (to, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            *to = word.to_be_bytes();
        }
        out
    }
}

/// Proof that this CPU has the extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extensions(());

impl Extensions {
    pub(crate) fn detect() -> Option<Extensions> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("sse4.1")
            && is_x86_feature_detected!("ssse3")
        {
            return Some(Extensions(()));
        }
        None
    }

    /// Advances both states over the whole 64-byte blocks of `bytes`; what is left of it is not looked at.
    pub(crate) fn both(self, one: &mut State, two: &mut State, bytes: &[u8]) {
        let (blocks, _) = bytes.as_chunks::<BLOCK>();
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `self` is only made by `detect`, which has seen the features that the function is compiled for.
        unsafe {
            x86::both(&mut one.0, &mut two.0, blocks);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (one, two, blocks);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::BLOCK;

    /// FIPS 180-4 section 4.2.2.
    #[rustfmt::skip]
    static K: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5], [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3], [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc], [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7], [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13], [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3], [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5], [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208], [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    /// Four words from memory.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn words(from: &[u32; 4]) -> __m128i {
        // SAFETY: 16 readable bytes; the load needs no alignment.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    /// `a b c d e f g h` as the instructions want it: `a b e f` and `c d g h`, the first in the highest lane.
    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn load(s: &[u32; 8]) -> [__m128i; 2] {
        let [a, b, c, d, e, f, g, h] = s.map(u32::cast_signed);
        [_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h)]
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn store(s: &mut [u32; 8], [abef, cdgh]: [__m128i; 2]) {
        let lanes = [
            _mm_extract_epi32::<3>(abef),
            _mm_extract_epi32::<2>(abef),
            _mm_extract_epi32::<3>(cdgh),
            _mm_extract_epi32::<2>(cdgh),
            _mm_extract_epi32::<1>(abef),
            _mm_extract_epi32::<0>(abef),
            _mm_extract_epi32::<1>(cdgh),
            _mm_extract_epi32::<0>(cdgh),
        ];
        *s = lanes.map(i32::cast_unsigned);
    }

    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn both(one: &mut [u32; 8], two: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
        let [mut a0, mut a1] = load(one);
        let [mut b0, mut b1] = load(two);
        // The message is of big-endian words.
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        for block in blocks {
            let (before_a, before_b) = ([a0, a1], [b0, b1]);
            // SAFETY: each reads 16 of the block's 64 bytes; the load needs no alignment.
            let [mut w0, mut w1, mut w2, mut w3] = unsafe {
                let from = block.as_ptr().cast::<__m128i>();
                [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)))
            };
            w0 = _mm_shuffle_epi8(w0, swap);
            w1 = _mm_shuffle_epi8(w1, swap);
            w2 = _mm_shuffle_epi8(w2, swap);
            w3 = _mm_shuffle_epi8(w3, swap);
            // Four rounds of both. Written out, because the compiler that saves space keeps a loop, and its words in memory.
            macro_rules! rounds {
                ($w:ident, $i:literal) => {
                    let low = _mm_add_epi32($w, words(&K[$i]));
                    let high = _mm_shuffle_epi32::<0x0e>(low);
                    a1 = _mm_sha256rnds2_epu32(a1, a0, low);
                    b1 = _mm_sha256rnds2_epu32(b1, b0, low);
                    a0 = _mm_sha256rnds2_epu32(a0, a1, high);
                    b0 = _mm_sha256rnds2_epu32(b0, b1, high);
                };
            }
            // The same, and the words of four rounds later in place of those used.
            macro_rules! extend {
                ($w:ident, $w1:ident, $w2:ident, $w3:ident, $i:literal) => {
                    rounds!($w, $i);
                    let sum = _mm_add_epi32(
                        _mm_sha256msg1_epu32($w, $w1),
                        _mm_alignr_epi8::<4>($w3, $w2),
                    );
                    $w = _mm_sha256msg2_epu32(sum, $w3);
                };
            }
            extend!(w0, w1, w2, w3, 0);
            extend!(w1, w2, w3, w0, 1);
            extend!(w2, w3, w0, w1, 2);
            extend!(w3, w0, w1, w2, 3);
            extend!(w0, w1, w2, w3, 4);
            extend!(w1, w2, w3, w0, 5);
            extend!(w2, w3, w0, w1, 6);
            extend!(w3, w0, w1, w2, 7);
            extend!(w0, w1, w2, w3, 8);
            extend!(w1, w2, w3, w0, 9);
            extend!(w2, w3, w0, w1, 10);
            extend!(w3, w0, w1, w2, 11);
            rounds!(w0, 12);
            rounds!(w1, 13);
            rounds!(w2, 14);
            rounds!(w3, 15);
            a0 = _mm_add_epi32(a0, before_a[0]);
            a1 = _mm_add_epi32(a1, before_a[1]);
            b0 = _mm_add_epi32(b0, before_b[0]);
            b1 = _mm_add_epi32(b1, before_b[1]);
        }
        store(one, [a0, a1]);
        store(two, [b0, b1]);
    }
}
