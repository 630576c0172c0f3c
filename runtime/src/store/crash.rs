//! `kill -9` of a process that commits, several times over one directory: whatever it had reported as acknowledged is
//! there after the reopen, at most the one transaction per writer that was under way beyond it, and transactions of
//! several keys are whole. Through the sealed store, as the server has it. (Power loss is out of reach of this test.)
//!
//! The child is this test binary again, at [`child`], told by an environment variable where to write.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::contract::{block_on, sealed};
use super::sealed::SealedStore;
use super::sled::SledStore;
use super::*;

const DIR_VARIABLE: &str = "TESSERA_STORE_CRASH_DIR";
const ROUNDS: usize = 10;
const WRITERS: usize = 8;

#[test]
fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(9);
    let mut acknowledged = BTreeMap::new();
    for round in 0..ROUNDS {
        kill_while_it_writes(dir.path(), &mut random, &mut acknowledged);

        let store = open(dir.path());
        for writer in 0..WRITERS {
            let acknowledged = acknowledged.get(&writer).copied().unwrap_or(0);
            let found = check_writer(&store, writer);
            assert!(
                (acknowledged..=acknowledged + 1).contains(&found),
                "round {round}, writer {writer}: {acknowledged} acknowledged, {found} found"
            );
        }
    }
}

/// Adds to `acknowledged`, per writer, the last number the child reported before it died.
fn kill_while_it_writes(dir: &Path, random: &mut fastrand::Rng, acknowledged: &mut BTreeMap<usize, u64>) {
    let (_, child_test) = concat!(module_path!(), "::child").split_once("::").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([child_test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR_VARIABLE, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut kill_after_lines = random.usize(1..600);
    let mut line = Vec::new();
    // A line without its end was cut by the kill.
    while output.read_until(b'\n', &mut line).unwrap() > 0 && line.ends_with(b"\n") {
        let text = String::from_utf8(std::mem::take(&mut line)).unwrap();
        let mut words = text.split_whitespace();
        if words.next() != Some("ack") {
            continue;
        }
        let mut number = || words.next().unwrap().parse().unwrap();
        acknowledged.insert(number() as usize, number());
        kill_after_lines = kill_after_lines.saturating_sub(1);
        if kill_after_lines == 0 {
            // The test's one wait: not for something to happen, but to make the moment of death random.
            std::thread::sleep(Duration::from_micros(random.u64(0..3000)));
            child.kill().unwrap(); // SIGKILL; the loop goes on to what is still in the pipe
            kill_after_lines = usize::MAX;
        }
    }
    assert!(!child.wait().unwrap().success(), "the child ends only by the kill");
}

fn open(dir: &Path) -> SealedStore {
    sealed(Arc::new(SledStore::open(&dir.join("store")).unwrap()), dir)
}

/// The last number of this writer in the store, where all before it are too, and its pair is whole.
fn check_writer(store: &SealedStore, writer: usize) -> u64 {
    let entries = store.scan(&format!("numbers/{writer}/"), None, usize::MAX).unwrap();
    for (entry, number) in entries.iter().zip(1..) {
        assert_eq!((&entry.key, number_in(entry)), (&number_key(writer, number), number), "no gap");
    }
    let found = entries.len() as u64;
    let pair = ["left", "right"].map(|side| store.get(&format!("pairs/{writer}/{side}")).unwrap());
    match pair {
        [Some(left), Some(right)] => {
            assert_eq!((left.revision, number_in(&left)), (right.revision, number_in(&right)), "one transaction");
            assert_eq!((number_in(&left), left.revision), (found, entries.last().unwrap().revision));
        }
        [None, None] => assert_eq!(found, 0),
        torn => panic!("a torn transaction: {torn:?}"),
    }
    found
}

fn number_key(writer: usize, number: u64) -> String {
    format!("numbers/{writer}/{number:010}")
}

fn number_in(entry: &Entry) -> u64 {
    u64::from_le_bytes(*entry.value.first_chunk().unwrap())
}

/// Not a test: what the parent kills. Each writer numbers its transactions and waits for each; one transaction writes
/// the number under a key of its own and under both keys of the pair.
#[test]
#[ignore = "started by acknowledged_writes_survive_kill_9"]
fn child() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    println!(); // libtest has left its line open
    block_on(async {
        let store = Arc::new(open(Path::new(&dir)));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = Arc::clone(&store);
            writers.spawn(async move {
                for number in check_writer(&store, writer) + 1.. {
                    // Of many sizes, so that sled's pages and segments are cut everywhere.
                    let mut value = number.to_le_bytes().to_vec();
                    value.resize(8 + fastrand::usize(..=MAX_VALUE_BYTES - 8), writer as u8);
                    let pair = ["left", "right"].map(|side| format!("pairs/{writer}/{side}"));
                    let transaction = pair.into_iter().fold(Transaction::new(), |all, key| all.put(key, value.clone()));
                    let own = number_key(writer, number);
                    store.commit(transaction.require_absent(&own).put(own, value)).await.unwrap();
                    std::io::stdout().write_all(format!("ack {writer} {number}\n").as_bytes()).unwrap();
                }
            });
        }
        while writers.join_next().await.is_some() {}
    });
}
