//! Random histories of turns, closes, kills, power cuts and folds, against a map.

use std::sync::Arc;

use checkpoint::{Change, RowKey, Store, simulated::SimulatedDisk};
use proptest::prelude::*;

use crate::harness::*;

#[derive(Debug, Clone)]
enum Step {
    Turn(Vec<Change>),
    WaitDurable,
    Fold,
    Epoch,
    CloseAndOpen,
    Kill,
    PowerLoss(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![
        1 => Just(None),
        3 => prop_oneof![8 => 0..100usize, 2 => 400..3000usize, 1 => 9_000..12_000usize]
            .prop_flat_map(|length| any::<u8>().prop_map(move |byte| Some(vec![byte; length]))),
    ];
    let name = prop::collection::vec(0..2u8, 0..4);
    let change =
        (0..SPACES, name, value).prop_map(|(space, name, value)| Change { key: RowKey { space, name }, value });
    let step = prop_oneof![
        12 => prop::collection::vec(change, 0..4).prop_map(Step::Turn),
        2 => Just(Step::WaitDurable),
        2 => Just(Step::Fold),
        1 => Just(Step::Epoch),
        1 => Just(Step::CloseAndOpen),
        1 => Just(Step::Kill),
        2 => any::<u64>().prop_map(Step::PowerLoss),
    ];
    prop::collection::vec(step, 1..60)
}

/// The store under test, and what it should contain after each turn.
struct Subject {
    disk: Arc<SimulatedDisk>,
    store: Store,
    models: Vec<Rows>,
    epoch: u64,
    folds: bool,
}

impl Subject {
    fn options(&self) -> checkpoint::StoreOptions {
        if self.folds { many_folds() } else { no_folds() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Turn(changes) => {
                let mut rows = self.models.last().unwrap().clone();
                apply(&mut rows, changes);
                self.models.push(rows);
                turn(&self.store, changes.clone()).unwrap();
            }
            Step::WaitDurable => {
                self.store.wait_durable(self.store.position().turn).unwrap();
                assert_eq!(self.store.durable().turn, self.store.position().turn);
            }
            Step::Fold => {
                self.store.fold().unwrap();
                assert_eq!(self.store.sizes().unwrap().unfolded_bytes, 0);
            }
            Step::Epoch => {
                self.epoch += 1;
                let incarnation = [self.epoch.to_le_bytes()[0]; 16];
                self.store.begin_epoch(self.epoch, incarnation).unwrap();
                assert_eq!(self.store.incarnation(), incarnation);
            }
            Step::CloseAndOpen => {
                let submitted = self.store.position().turn;
                let disk = Arc::clone(&self.disk);
                self.replace(&disk);
                assert_eq!(self.store.position().turn, submitted, "closing commits what was submitted");
            }
            Step::Kill => self.crash(None),
            Step::PowerLoss(seed) => self.crash(Some(*seed)),
        }
    }

    /// Ends the process, and with a seed the machine as well.
    fn crash(&mut self, power: Option<u64>) {
        let (durable, submitted) = (self.store.durable().turn, self.store.position().turn);
        let mut history = self.disk.history();
        history.advance(history.len());
        let disk = power.map_or_else(|| history.kill(), |seed| history.crash(seed));
        self.replace(&disk);
        let found = self.store.position().turn;
        assert!((durable..=submitted).contains(&found), "{found} of {durable}..={submitted}");
        self.models.truncate(usize::try_from(found).unwrap() + 1);
    }

    fn replace(&mut self, disk: &Arc<SimulatedDisk>) {
        let options = self.options();
        // The old store must let go of the lock before the new one can take it, so it is replaced by one that
        // nobody wants.
        let nowhere = SimulatedDisk::new();
        let old = std::mem::replace(&mut self.store, create(&nowhere, no_folds()).unwrap());
        old.close().unwrap();
        self.store = open(disk, options).unwrap();
        self.disk = Arc::clone(disk);
    }

    fn check(&self) {
        assert!(self.store.poisoned().is_none());
        let model = self.models.last().unwrap();
        assert_eq!(self.store.position().turn as usize, self.models.len() - 1);
        assert_eq!(self.store.durable().epoch, self.epoch);
        assert_eq!(&contents(&self.store).unwrap(), model);
        for name in [&[][..], &[0], &[1, 0], &[9]] {
            assert_eq!(get(&self.store, 1, name).as_ref(), model.get(&(1, name.to_vec())));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_store_is_a_map_that_never_forgets(steps in steps(), folds in any::<bool>()) {
        let disk = SimulatedDisk::new();
        let store = create(&disk, if folds { many_folds() } else { no_folds() }).unwrap();
        let mut subject = Subject { disk, store, models: vec![Rows::new()], epoch: 0, folds };
        for step in &steps {
            subject.step(step);
            subject.check();
        }
    }
}
