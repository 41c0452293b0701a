//! Measures the embedded store: `cargo run --release -p sterna-store --example latency [FOLDER]`.
//!
//! Prints milliseconds: p50, p99 and the longest. `sync` is the price of the disk itself: an append of 4 KiB and
//! an fdatasync.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_store::{Sqlite, Store, Txn};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const COMMITS: usize = 500;
const OBJECTS: usize = 1000;

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let ms = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    println!("{name:<34} p50 {:7.3}  p99 {:7.3}  max {:7.3}", ms(50), ms(99), ms(100));
}

fn sync(folder: &Path) -> std::io::Result<()> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut times = Vec::new();
    for _ in 0..COMMITS {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    report("sync (4 KiB append)", times);
    Ok(())
}

async fn sequential(store: &Sqlite) -> Outcome<()> {
    let mut watch = store.watch("seq/", 0).await?;
    let (mut commits, mut tellings) = (Vec::new(), Vec::new());
    for i in 0..COMMITS {
        let start = Instant::now();
        store.commit(Txn::new().put(format!("seq/{}", i % 50), vec![7; 500])).await?;
        commits.push(start.elapsed());
        watch.next().await?;
        tellings.push(start.elapsed());
    }
    report("commit, one after the other", commits);
    report("commit until a watch tells it", tellings);
    Ok(())
}

async fn concurrent(store: Arc<Sqlite>) -> Outcome<()> {
    let start = Instant::now();
    let task = |task: usize| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for i in 0..COMMITS / 10 {
                store.commit(Txn::new().put(format!("con/{task}/{i}"), vec![7; 500])).await?;
            }
            Ok::<_, sterna_store::Error>(())
        })
    };
    let tasks: Vec<_> = (0..64).map(task).collect();
    for task in tasks {
        task.await??;
    }
    let rate = (64 * (COMMITS / 10)) as f64 / start.elapsed().as_secs_f64();
    println!("{:<34} {rate:.0} commits/s", "commit, 64 at a time");
    Ok(())
}

async fn reads(store: &Sqlite) -> Outcome<()> {
    for chunk in (0..OBJECTS).collect::<Vec<_>>().chunks(250) {
        let put = |txn: Txn, i: &usize| txn.put(format!("vm/{i:04}"), vec![7; 1500]);
        store.commit(chunk.iter().fold(Txn::new(), put)).await?;
    }
    let (mut ranges, mut gets) = (Vec::new(), Vec::new());
    for i in 0..200 {
        let start = Instant::now();
        assert_eq!(store.range("vm/", None).await?.entries.len(), OBJECTS);
        ranges.push(start.elapsed());
        let start = Instant::now();
        store.get(&format!("vm/{i:04}")).await?;
        gets.push(start.elapsed());
    }
    report("range of 1,000 x 1.5 kB", ranges);
    report("get", gets);
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "target".to_owned());
    let folder = tempfile::tempdir_in(folder)?;
    sync(folder.path())?;
    let start = Instant::now();
    let store = Arc::new(Sqlite::open(&folder.path().join("store.db"))?);
    report("open, new", vec![start.elapsed()]);
    sequential(&store).await?;
    concurrent(Arc::clone(&store)).await?;
    reads(&store).await
}
