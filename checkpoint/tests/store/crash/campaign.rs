//! Crashing a life at every point, and the recoveries again.

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex},
};

use checkpoint::simulated::SimulatedDisk;

use super::{
    check::{Allowed, GoOn, Recovered},
    images::{Coverage, Kind, Point},
    life::{Life, live},
};
use crate::harness::*;

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Steps in each life.
    pub(super) steps: u64,
    /// Images at a point at which not all can be tried.
    pub(super) samples: u64,
    /// The recovery of one image in so many is crashed after each of its operations.
    pub(super) second_crash: u64,
}

/// The campaign's own random choices, and what it has done so far.
struct Campaign<'a> {
    life: &'a Life,
    effort: Effort,
    random: Random,
    coverage: Coverage,
}

/// Lives with these seeds, crashed by two threads, until there were `enough` images. What was covered, or what was
/// wrong with the first image that was found to be.
pub(super) fn crash_lives(seeds: RangeInclusive<u64>, effort: Effort, enough: u64) -> Result<Coverage, String> {
    let total = Mutex::new(Ok(Coverage::default()));
    on_two_threads(seeds.clone().count() as u64, |number| {
        if total.lock().unwrap().as_ref().map_or(true, |total: &Coverage| total.images >= enough) {
            return;
        }
        let seed = seeds.start() + number;
        let covered = crash_both_lives(seed, effort);
        let mut total = total.lock().unwrap();
        match (total.as_mut(), covered) {
            (Ok(total), Ok(covered)) => total.merge(covered),
            (Ok(_), Err(what)) => *total = Err(format!("life {seed}: {what}")),
            (Err(_), _) => {}
        }
    });
    total.into_inner().unwrap()
}

/// A life, and that of the store that a crash has left of it.
fn crash_both_lives(seed: u64, effort: Effort) -> Result<Coverage, String> {
    let disk = SimulatedDisk::new();
    let life = live(&disk, &disk, seed, effort.steps, || ()).map_err(|cut| cut.to_string())?;
    let mut coverage = crash(&life, effort)?;
    let after = life.after_a_crash(effort.steps).map_err(|cut| format!("after a crash, {cut}"))?;
    coverage.merge(crash(&after, effort).map_err(|what| format!("in the life after a crash, {what}"))?);
    Ok(coverage)
}

/// Crashes one life.
pub(super) fn crash(life: &Life, effort: Effort) -> Result<Coverage, String> {
    let mut campaign = Campaign { life, effort, random: Random(life.seed), coverage: Coverage::default() };
    let mut history = life.disk.history();
    history.advance(life.begins);
    let mut marks = history.marks().count();
    for point in life.begins..=history.len() {
        history.advance(point);
        let marked = history.marks().count() > marks;
        marks += usize::from(marked);
        // Announcing something allows more and changes nothing.
        if marked && !history.marks().last().is_some_and(|mark| Mark::from_number(mark).acknowledges()) {
            continue;
        }
        let allowed = Allowed::after(history.marks());
        let at = Point::new(&history, point);
        // A sync alone makes fewer images possible, and acknowledges nothing.
        if !marked && !at.is_new() && point > life.begins {
            continue;
        }
        for kept in at.images(&mut campaign.random, effort.samples) {
            let wrong = |what| format!("after operation {point}: {what}\n{}", at.describe(&kept));
            let mut kinds = at.kinds(&kept);
            if !allowed.created {
                kinds.remove(&Kind::DuringFold);
                kinds.insert(Kind::DuringCreate);
            }
            campaign.coverage.add(kinds);
            campaign.image(&at.disk(&kept), &allowed, None).map_err(wrong)?;
        }
        if point % 8 == 0 && allowed.created {
            let wrong = |what| format!("killed after operation {point}: {what}");
            campaign.image(&history.kill(), &allowed, Some(Kind::AfterKill)).map_err(wrong)?;
        }
    }
    Ok(campaign.coverage)
}

impl Campaign<'_> {
    fn image(&mut self, disk: &Arc<SimulatedDisk>, allowed: &Allowed, killed: Option<Kind>) -> Result<(), String> {
        let before = disk.operations();
        let go_on = match self.random.below(48) {
            0 => GoOn::Long,
            1..=8 => GoOn::Reopen,
            _ => GoOn::Turn,
        };
        let recovered = allowed.check(disk, self.life, go_on)?;
        if killed.is_none() && self.random.below(self.effort.second_crash) > 0 {
            return Ok(());
        }
        let Some(recovered) = recovered else { return Ok(()) };
        self.crash_recovery(disk, before, &recovered, allowed, killed)
    }

    /// The power fails after each operation of the recovery.
    fn crash_recovery(
        &mut self,
        disk: &Arc<SimulatedDisk>,
        before: usize,
        recovered: &Recovered,
        allowed: &Allowed,
        killed: Option<Kind>,
    ) -> Result<(), String> {
        let mut history = disk.history();
        for point in before + 1..=recovered.operations {
            history.advance(point);
            // What the recovery has shown is shown, even if nobody had acknowledged it before.
            let whole = point == recovered.operations;
            let allowed = if whole { allowed.shown(recovered.turn) } else { allowed.clone() };
            let at = Point::new(&history, point);
            if !whole && !at.is_new() {
                continue;
            }
            for kept in at.images(&mut self.random, 3) {
                let kinds = at.kinds(&kept).into_iter().filter(|kind| *kind != Kind::DuringFold);
                self.coverage.add(kinds.chain([Kind::DuringRecovery]).chain(killed));
                allowed.check(&at.disk(&kept), self.life, GoOn::Turn).map_err(|what| {
                    let recovery = point - before;
                    format!("and again after operation {recovery} of the recovery: {what}\n{}", at.describe(&kept))
                })?;
            }
        }
        Ok(())
    }
}
