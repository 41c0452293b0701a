//! Every help page as a golden file: a change of the command line is a change that a reviewer sees.
//!
//! `UPDATE_GOLDEN=1 cargo test -p sterna-cli` writes them anew.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Command;

fn pages() -> BTreeMap<String, String> {
    let mut root = sterna_cli::command().term_width(80);
    root.build();
    let mut pages = BTreeMap::new();
    collect(&mut root, "", &mut pages);
    pages
}

fn collect(command: &mut Command, above: &str, pages: &mut BTreeMap<String, String>) {
    let path = if above.is_empty() {
        command.get_name().to_owned()
    } else {
        format!("{above}-{}", command.get_name())
    };
    pages.insert(path.clone(), command.render_long_help().to_string());
    for below in command.get_subcommands_mut().filter(|below| below.get_name() != "help") {
        collect(below, &path, pages);
    }
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn every_help_page_is_as_reviewed() {
    let pages = pages();
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    if update {
        let _ = std::fs::remove_dir_all(golden());
        std::fs::create_dir_all(golden()).unwrap();
    }
    let mut wrong = Vec::new();
    for (path, text) in &pages {
        let file = golden().join(format!("{path}.txt"));
        if update {
            std::fs::write(&file, text).unwrap();
        } else if std::fs::read_to_string(&file).ok().as_ref() != Some(text) {
            wrong.push(path.clone());
        }
    }
    let files: Vec<_> = std::fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let known = |file: &PathBuf| pages.contains_key(file.file_stem().unwrap().to_str().unwrap());
    wrong.extend(files.into_iter().filter(|file| !known(file)).map(|file| file.display().to_string()));
    assert!(wrong.is_empty(), "differ: {wrong:?}; read the change, then run with UPDATE_GOLDEN=1");
}

#[test]
fn help_fits_eighty_columns() {
    for (path, text) in pages() {
        // clap never wraps a usage line.
        let pages = text.lines().filter(|line| !line.starts_with("Usage:"));
        let long: Vec<_> = pages.filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{path}: {long:?}");
    }
}

#[test]
fn commands_are_noun_and_verb() {
    let root = sterna_cli::command();
    for noun in root.get_subcommands() {
        let one_word = ["apply", "completion"].contains(&noun.get_name());
        assert_eq!(noun.has_subcommands(), !one_word, "{}", noun.get_name());
        // A host's device is a part of the host, with verbs of its own.
        let has_verbs = |part: &str| (noun.get_name(), part) == ("host", "fence");
        let is_right = |verb: &Command| verb.has_subcommands() == has_verbs(verb.get_name());
        assert!(noun.get_subcommands().all(is_right), "{}", noun.get_name());
    }
}
