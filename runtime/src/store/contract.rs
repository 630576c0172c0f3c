//! The contract of [`StateStore`], run over every implementation, and the sled store, also sealed, checked against the
//! memory store as its model: the same random transactions, the same answers, also after each reopen.

use std::path::Path;

use super::memory::MemoryStore;
use super::sealed::SealedStore;
use super::sled::SledStore;
use super::*;

/// Runs a test over a fresh store of each kind.
fn over_each_store<F: AsyncFn(&dyn StateStore)>(test: F) {
    over_each_limited_store(async |store, _| test(store).await);
}

/// The same with the longest value that the store takes.
fn over_each_limited_store<F: AsyncFn(&dyn StateStore, usize)>(test: F) {
    let dir = tempfile::tempdir().unwrap();
    let raw = [Arc::new(MemoryStore::new()) as Arc<dyn StateStore>, Arc::new(open(&dir.path().join("raw")))];
    for store in raw {
        block_on(test(&*store, MAX_STORED_BYTES));
    }
    for inner in [Arc::new(MemoryStore::new()) as Arc<dyn StateStore>, Arc::new(open(&dir.path().join("inner")))] {
        block_on(test(&sealed(inner, dir.path()), MAX_VALUE_BYTES));
    }
}

fn open(dir: &Path) -> SledStore {
    SledStore::open(dir).unwrap()
}

/// A store sealed with the keys that live in `dir`.
pub(super) fn sealed(inner: Arc<dyn StateStore>, dir: &Path) -> SealedStore {
    SealedStore::new(inner, Keyring::for_tests(dir))
}

pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn entry(key: &str, value: &str, revision: Revision) -> Entry {
    Entry { key: key.into(), value: value.into(), revision }
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

#[test]
fn entries_carry_the_revision_that_wrote_them() {
    over_each_store(async |store| {
        assert_eq!(store.get("a").unwrap(), None);
        assert_eq!(store.commit(Transaction::new().put("a", "1").put("b", "1")).await.unwrap(), 1);
        assert_eq!(store.commit(Transaction::new().put("a", "2")).await.unwrap(), 2);
        assert_eq!(store.get("a").unwrap(), Some(entry("a", "2", 2)));
        assert_eq!(store.get("b").unwrap(), Some(entry("b", "1", 1)));
        assert_eq!(store.commit(Transaction::new().delete("a")).await.unwrap(), 3);
        assert_eq!(store.get("a").unwrap(), None);
        store.health().unwrap();
    });
}

#[test]
fn a_transaction_that_changes_nothing_takes_no_revision() {
    over_each_store(async |store| {
        assert_eq!(store.commit(Transaction::new()).await.unwrap(), 0);
        assert_eq!(store.commit(Transaction::new().put("a", "")).await.unwrap(), 1);
        assert_eq!(store.commit(Transaction::new().require("a", 1)).await.unwrap(), 1);
        assert_eq!(store.commit(Transaction::new().delete("absent")).await.unwrap(), 1);
        assert_eq!(store.commit(Transaction::new().put("b", "").delete("b")).await.unwrap(), 1);
        assert_eq!(store.commit(Transaction::new().put("a", "")).await.unwrap(), 2, "the same value is a new write");
    });
}

#[test]
fn conditions_decide_over_the_whole_transaction() {
    over_each_store(async |store| {
        let create = Transaction::new().require_absent("a").put("a", "1");
        assert_eq!(store.commit(create.clone()).await.unwrap(), 1);
        let conflict = |key: &str, outcome: Result<Revision, StoreError>| match outcome {
            Err(StoreError::Conflict { key: named }) => assert_eq!(named, key),
            other => panic!("a conflict on {key} expected, not {other:?}"),
        };
        conflict("a", store.commit(create).await);
        conflict("a", store.commit(Transaction::new().require("a", 2).put("b", "")).await);
        conflict("c", store.commit(Transaction::new().require("a", 1).require("c", 1).put("b", "")).await);
        assert_eq!(store.get("b").unwrap(), None, "a failed transaction leaves nothing");
        assert_eq!(store.commit(Transaction::new().require("a", 1).delete("a")).await.unwrap(), 2);
        assert_eq!(store.commit(Transaction::new().require_absent("a").put("a", "2")).await.unwrap(), 3);
    });
}

#[test]
fn the_last_operation_on_a_key_counts() {
    over_each_store(async |store| {
        let mut watch = store.watch("");
        store
            .commit(Transaction::new().put("a", "1").delete("a").put("a", "2").put("b", "").delete("b"))
            .await
            .unwrap();
        assert_eq!(store.scan("", None, 10).unwrap(), [entry("a", "2", 1)]);
        assert_eq!(watch.next().await, Ok(Change { key: "a".into(), value: Some("2".into()), revision: 1 }));
    });
}

#[test]
fn a_scan_pages_through_one_prefix_in_key_order() {
    over_each_store(async |store| {
        let all = ["t/", "t/a", "t/a/1", "t/b", "t/ä", "t0", "s", "u"];
        let puts = all.iter().fold(Transaction::new(), |transaction, key| transaction.put(*key, "v"));
        store.commit(puts).await.unwrap();

        assert_eq!(keys(&store.scan("t/", None, 10).unwrap()), ["t/", "t/a", "t/a/1", "t/b", "t/ä"]);
        assert_eq!(keys(&store.scan("t/", None, 2).unwrap()), ["t/", "t/a"]);
        assert_eq!(keys(&store.scan("t/", Some("t/a"), 2).unwrap()), ["t/a/1", "t/b"]);
        assert_eq!(keys(&store.scan("t/", Some("t/aa"), 9).unwrap()), ["t/b", "t/ä"], "`after` need not exist");
        assert_eq!(keys(&store.scan("t/", Some("a"), 1).unwrap()), ["t/"], "`after` may come before the prefix");
        assert_eq!(keys(&store.scan("t/", Some("z"), 1).unwrap()), [""; 0]);
        assert_eq!(keys(&store.scan("t/", None, 0).unwrap()), [""; 0]);
        assert_eq!(store.scan("", None, usize::MAX).unwrap().len(), all.len(), "and nothing of the store's own");
    });
}

#[test]
fn what_is_over_a_limit_is_refused_and_the_largest_allowed_is_kept() {
    over_each_limited_store(async |store, value_bytes_max| {
        let (key, value) = ("k".repeat(MAX_KEY_BYTES), vec![7; value_bytes_max]);
        store.commit(Transaction::new().put(&key, value.clone())).await.unwrap();
        assert_eq!(store.get(&key).unwrap().unwrap().value, value);

        let too_large = |outcome, expected: (&str, usize, usize)| match outcome {
            Err(StoreError::TooLarge { key, bytes, max }) => assert_eq!((key.as_str(), bytes, max), expected),
            other => panic!("too large expected, not {other:?}"),
        };
        let value = vec![7; value_bytes_max + 1];
        let outcome = store.commit(Transaction::new().put("a", "").put("b", value.clone())).await;
        too_large(outcome, ("b", value_bytes_max + 1, value_bytes_max));
        let key = "k".repeat(MAX_KEY_BYTES + 1);
        for transaction in
            [Transaction::new().put(&key, ""), Transaction::new().delete(&key), Transaction::new().require_absent(&key)]
        {
            too_large(store.commit(transaction).await, (&key, MAX_KEY_BYTES + 1, MAX_KEY_BYTES));
        }
        let full = (0..MAX_TRANSACTION_LEN).fold(Transaction::new(), |all, number| all.put(format!("n/{number}"), ""));
        let outcome = store.commit(full.clone().put("one more", "")).await;
        assert!(matches!(outcome, Err(StoreError::TooMany { count: 129, max: 128 })), "{outcome:?}");
        store.commit(full).await.unwrap();
        assert_eq!(store.scan("n/", None, 1000).unwrap().len(), MAX_TRANSACTION_LEN);
        assert_eq!(store.get("a").unwrap(), None);
    });
}

#[test]
fn a_watch_gets_the_changes_of_its_prefix_in_order() {
    over_each_store(async |store| {
        store.commit(Transaction::new().put("w/before", "")).await.unwrap();
        let mut watch = store.watch("w/");
        store.commit(Transaction::new().put("w/b", "2").put("other", "").put("w/a", "1")).await.unwrap();
        store.commit(Transaction::new().require("w/a", 9).delete("w/a")).await.unwrap_err();
        store.commit(Transaction::new().delete("w/a").delete("w/absent")).await.unwrap();

        let change = |key: &str, value: Option<&str>, revision| Change {
            key: key.into(),
            value: value.map(Into::into),
            revision,
        };
        assert_eq!(watch.next().await, Ok(change("w/a", Some("1"), 2)));
        assert_eq!(watch.next().await, Ok(change("w/b", Some("2"), 2)));
        assert_eq!(watch.next().await, Ok(change("w/a", None, 3)));
    });
}

#[test]
fn a_watch_that_lags_says_so_and_goes_on() {
    over_each_store(async |store| {
        let mut watch = store.watch("w");
        for number in 0..=WATCH_CHANGES_MAX / MAX_TRANSACTION_LEN {
            let keys = (0..MAX_TRANSACTION_LEN).map(|key| format!("w/{number}/{key}"));
            store.commit(keys.fold(Transaction::new(), |all, key| all.put(key, ""))).await.unwrap();
        }
        assert_eq!(watch.next().await, Err(WatchError::Lagged));
        assert_eq!(watch.next().await.unwrap().revision, 2);
    });
}

#[test]
fn a_watch_ends_with_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let stores: [Box<dyn StateStore>; 3] = [
        Box::new(MemoryStore::new()),
        Box::new(open(&dir.path().join("raw"))),
        Box::new(sealed(Arc::new(open(&dir.path().join("inner"))), dir.path())),
    ];
    for store in stores {
        let mut watch = store.watch("");
        drop(store);
        assert_eq!(block_on(watch.next()), Err(WatchError::Closed));
    }
}

#[test]
fn the_sled_store_answers_as_the_model_does() {
    for seed in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let model = MemoryStore::new();
        for _reopen in 0..3 {
            let store: Box<dyn StateStore> = match seed % 2 {
                0 => Box::new(open(&dir.path().join("store"))),
                _ => Box::new(sealed(Arc::new(open(&dir.path().join("store"))), dir.path())),
            };
            block_on(compare(&model, &*store, &mut random));
        }
    }
}

/// Bursts of random transactions to both stores. The burst goes to sled at once, so that groups of all sizes form.
async fn compare(model: &MemoryStore, sled: &dyn StateStore, random: &mut fastrand::Rng) {
    assert_eq!(sled.scan("", None, usize::MAX).unwrap(), model.scan("", None, usize::MAX).unwrap(), "after the open");
    let (mut sled_watch, mut model_watch) = (sled.watch("b"), model.watch("b"));
    for _burst in 0..15 {
        let burst: Vec<_> = (0..random.usize(1..20)).map(|_| random_transaction(model, random)).collect();
        let answers: Vec<_> = burst.iter().map(|transaction| sled.commit(transaction.clone())).collect();
        for (transaction, answer) in burst.into_iter().zip(answers) {
            let expected = model.commit(transaction.clone()).await;
            assert_eq!(format!("{:?}", answer.await), format!("{expected:?}"), "{transaction:?}");
        }
        let (prefix, after, limit) = (random_key(random), random_key(random), random.usize(0..8));
        let (prefix, after) = (&prefix[..random.usize(0..=1)], random.bool().then_some(after.as_str()));
        assert_eq!(sled.scan(prefix, after, limit).unwrap(), model.scan(prefix, after, limit).unwrap());
        let key = random_key(random);
        assert_eq!(sled.get(&key).unwrap(), model.get(&key).unwrap());
    }
    model.commit(Transaction::new().put("b/end", "")).await.unwrap();
    sled.commit(Transaction::new().put("b/end", "")).await.unwrap();
    loop {
        let change = model_watch.next().await.unwrap();
        assert_eq!(sled_watch.next().await.as_ref(), Ok(&change));
        if change.key == "b/end" {
            return;
        }
    }
}

/// Few keys, so that transactions meet; conditions that mostly hold for the first of a burst and often fail later.
fn random_transaction(model: &MemoryStore, random: &mut fastrand::Rng) -> Transaction {
    let mut transaction = Transaction::new();
    for _ in 0..random.usize(0..3) {
        let key = random_key(random);
        let revision = match random.u8(0..4) {
            0 => random.u64(0..100),
            _ => model.get(&key).unwrap().map_or(0, |entry| entry.revision),
        };
        transaction = transaction.require(key, revision);
    }
    for _ in 0..random.usize(0..5) {
        let key = random_key(random);
        transaction = match random.u8(0..3) {
            0 => transaction.delete(key),
            _ => transaction.put(key, vec![random.u8(..); random.usize(0..=MAX_VALUE_BYTES)]),
        };
    }
    transaction
}

fn random_key(random: &mut fastrand::Rng) -> String {
    format!("{}/{}", random.choice(["a", "b", "c"]).unwrap(), random.u8(0..8))
}
