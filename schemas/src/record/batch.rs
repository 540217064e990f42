//! Many signatures at once, for less than half the work of one after the other; and no other answers.
//!
//! A signature (R, s) of the key A over the message M is good, as [`VatId::verify_raw`](crate::VatId::verify_raw) has
//! it, if s is reduced, R is the canonical encoding of a point, neither R nor A is of small order, and
//!
//! ```text
//! E = R + kA - sB = 0        with k = SHA-512(R ‖ A ‖ M)
//! ```
//!
//! in the whole group, without multiplying by the cofactor. All but the equation is checked for each signature here as
//! well. For the equations there are two tests, with random numbers that are drawn after the signatures are known:
//!
//! 1. Σ zᵢEᵢ = 0 for random zᵢ of 128 bits. If the part of some Eᵢ in the subgroup of the prime order ℓ is not zero,
//!    this holds with a probability of 2⁻¹²⁸ (Bellare, Garay, Rabin, 1998). But it proves nothing about the other part of
//!    Eᵢ, which is one of eight points: with a zᵢ divisible by eight it goes unnoticed. So this test alone, which is what
//!    libraries offer, accepts every eighth signature with such a part that the strict check refuses.
//! 2. [`TORSION_TESTS`] times: Σ over a random half of all i of (Rᵢ + (kᵢ mod 8) Aᵢ) is in the subgroup, which one sees by
//!    multiplying with ℓ. These points have the same other part as Eᵢ, as B has none. If that of some Eᵢ is not zero,
//!    then of each two halves that differ only in i at least one is not in the subgroup; so all tests hold with a
//!    probability of 2⁻⁶⁴, for each attempt, which nobody can rehearse.
//!
//! Where both hold, all Eᵢ are zero. Where one does not, the batch is cut in two; small ones are verified one by one, and
//! that is what decides.

use curve25519_dalek::{
    Scalar,
    edwards::EdwardsPoint,
    traits::{Identity, IsIdentity, VartimeMultiscalarMul},
};
use sha2::{Digest, Sha512};

use super::{RecordError, SignedPacket, UnverifiedPacket};
use crate::{identity::decompress, limits::MIN_BATCH};

/// How often a random half is looked at: as many as a word has bits.
const TORSION_TESTS: usize = u64::BITS as usize;

/// Points whose sums are all made beforehand: so many of them are then added at once.
const GROUP: usize = 5;

/// Verifies many packets, in their order. Each is accepted or refused as [`UnverifiedPacket::verify`] would; from some
/// dozens on, in less than half of the time.
pub fn verify_all(packets: Vec<UnverifiedPacket>) -> Vec<Result<SignedPacket, RecordError>> {
    let equations: Vec<_> = packets.iter().map(Equation::of).collect();
    // What has no equation is refused below, by the check that says why.
    let all: Vec<_> = equations.iter().flatten().collect();
    let mut good = Vec::with_capacity(all.len());
    check(&all, &mut good);
    let mut good = good.into_iter();
    let verified = packets.into_iter().zip(&equations).map(|(packet, equation)| {
        let is_good = equation.is_some() && good.next() == Some(true);
        if is_good { Ok(packet.found_good()) } else { packet.verify() }
    });
    verified.collect()
}

/// Appends for each equation whether it is known to hold. What is not known has to be looked at by itself.
fn check(equations: &[&Equation], good: &mut Vec<bool>) {
    if equations.len() < MIN_BATCH {
        good.extend(equations.iter().map(|_| false));
    } else if hold(equations) {
        good.extend(equations.iter().map(|_| true));
    } else {
        let (one, other) = equations.split_at(equations.len() / 2);
        check(one, good);
        check(other, good);
    }
}

/// R + kA - sB = 0, for points that are not of small order.
struct Equation {
    r: EdwardsPoint,
    a: EdwardsPoint,
    s: Scalar,
    k: Scalar,
}

impl Equation {
    /// `None` if the signature cannot be good.
    fn of(UnverifiedPacket { packet, key, .. }: &UnverifiedPacket) -> Option<Self> {
        let id = packet.id();
        let a = match key {
            Some(key) => key.point(),
            None => decompress(id.as_bytes())?,
        };
        let (r, s) = packet.signature();
        let (r, s): ([u8; 32], [u8; 32]) = (r.try_into().ok()?, s.try_into().ok()?);
        let s = Option::from(Scalar::from_canonical_bytes(s))?;
        let hash = Sha512::new().chain_update(r).chain_update(id.as_bytes()).chain_update(packet.signed());
        let k = Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
        Some(Self { r: decompress(&r)?, a, s, k })
    }

    /// A point that differs from E by one of the subgroup: R + kA with k between -3 and 4, since 8A is in it.
    fn torsion(&self) -> EdwardsPoint {
        let k = self.k.as_bytes()[0] % 8;
        let (times, a) = if k > 4 { (8 - k, -self.a) } else { (k, self.a) };
        let twice = |point: EdwardsPoint| point + point;
        match times {
            0 => self.r,
            1 => self.r + a,
            2 => self.r + twice(a),
            3 => self.r + twice(a) + a,
            _ => self.r + twice(twice(a)),
        }
    }
}

/// Whether all equations hold. May say no if there are no random numbers.
fn hold(equations: &[&Equation]) -> bool {
    let mut random = vec![0; equations.len() * 24];
    if getrandom::fill(&mut random).is_err() {
        return false;
    }
    let (factors, halves) = random.split_at(equations.len() * 16);
    let (factors, halves) = (factors.as_chunks().0, halves.as_chunks().0);
    let factors: Vec<_> = factors.iter().map(|bytes| Scalar::from(u128::from_le_bytes(*bytes))).collect();
    let halves: Vec<_> = halves.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    all_in_sum(equations, &factors) && none_has_torsion(equations, &halves)
}

/// The first test.
fn all_in_sum(equations: &[&Equation], factors: &[Scalar]) -> bool {
    let base: Scalar = equations.iter().zip(factors).map(|(equation, factor)| equation.s * factor).sum();
    let of_keys = equations.iter().zip(factors).map(|(equation, factor)| equation.k * factor);
    let scalars = std::iter::once(-base).chain(factors.iter().copied()).chain(of_keys);
    let points = std::iter::once(curve25519_dalek::constants::ED25519_BASEPOINT_POINT)
        .chain(equations.iter().map(|equation| equation.r))
        .chain(equations.iter().map(|equation| equation.a));
    EdwardsPoint::vartime_multiscalar_mul(scalars, points).is_identity()
}

/// The second test. Each bit of a number says whether the point belongs to one of the halves.
fn none_has_torsion(equations: &[&Equation], halves: &[u64]) -> bool {
    let mut sums = [EdwardsPoint::identity(); TORSION_TESTS];
    // All sums of some points first: then each half needs one addition for all of these.
    let mut subsets = [EdwardsPoint::identity(); 1 << GROUP];
    for (equations, halves) in equations.chunks(GROUP).zip(halves.chunks(GROUP)) {
        for (place, equation) in equations.iter().enumerate() {
            let point = equation.torsion();
            for subset in 0..1 << place {
                subsets[subset | 1 << place] = subsets[subset] + point;
            }
        }
        for (test, sum) in sums.iter_mut().enumerate() {
            let subset = halves.iter().enumerate().fold(0, |subset, (place, halves)| {
                let bit = usize::from(halves >> test & 1 == 1);
                subset | bit << place
            });
            if subset > 0 {
                *sum += subsets[subset];
            }
        }
    }
    // ℓ - 1, since ℓ itself is zero as a scalar.
    let order_less_one = -Scalar::ONE;
    sums.iter()
        .all(|sum| EdwardsPoint::vartime_double_scalar_mul_basepoint(&order_less_one, sum, &Scalar::ZERO) == -sum)
}
