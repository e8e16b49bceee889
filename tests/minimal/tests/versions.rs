//! The lock file holds each direct dependency of tower-comet at the minimum version that its manifest declares.

use std::collections::BTreeMap;

const MANIFEST: &str = include_str!("../../../Cargo.toml");
const LOCK: &str = include_str!("../Cargo.lock");

/// The dependencies that a manifest declares, with their minimum versions. Development dependencies are left out.
fn declared(manifest: &str) -> BTreeMap<String, String> {
    let mut declared = BTreeMap::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            // `[dependencies]`, or `[target.'cfg(..)'.dependencies]`.
            inside = line == "[dependencies]" || line.ends_with(".dependencies]");
            assert!(!line.starts_with("[dependencies."), "{line}: write a dependency on one line");
            continue;
        }
        if !inside || line.is_empty() || line.starts_with('#') {
            continue;
        }
        let version = line.split_once('=').and_then(|(name, value)| {
            let value = value.trim();
            let quoted = match value.strip_prefix('{') {
                Some(table) => table.split_once("version = \"")?.1,
                None => value.strip_prefix('"')?,
            };
            Some((name.trim(), quoted.split_once('"')?.0))
        });
        let (name, version) = version.unwrap_or_else(|| panic!("{line}: a dependency needs a version, on one line"));
        assert!(!line.contains("package ="), "{line}: this test does not know about renamed dependencies");
        declared.insert(name.to_owned(), minimum(version));
    }
    declared
}

/// The lowest version that a caret requirement allows: 1.36.0 for `1.36`.
fn minimum(requirement: &str) -> String {
    let mut parts: Vec<&str> = requirement.split('.').collect();
    let digits = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    assert!(parts.len() <= 3 && parts.iter().all(digits), "{requirement}: write a caret requirement such as 1.36");
    parts.resize(3, "0");
    parts.join(".")
}

/// The versions that a lock file has chosen for the direct dependencies of a package.
fn locked(lock: &str, package: &str) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    let mut dependencies = None;
    for block in lock.split("[[package]]\n").skip(1) {
        let value = |key: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            line.unwrap_or_else(|| panic!("a locked package has a {key}")).trim_matches('"')
        };
        versions.entry(value("name")).or_default().push(value("version"));
        if value("name") == package {
            let (_, list) = block.split_once("dependencies = [\n").expect("the package has dependencies");
            dependencies = list.split_once(']').map(|(list, _)| list);
        }
    }
    let dependencies = dependencies.unwrap_or_else(|| panic!("{package} is locked"));
    let entry = |line: &str| {
        let line = line.trim().trim_end_matches(',').trim_matches('"');
        // The entry names a version only if several are locked.
        match line.split_once(' ') {
            Some((name, version)) => (name.to_owned(), version.to_owned()),
            None => (line.to_owned(), versions[line].join(" ")),
        }
    };
    dependencies.lines().map(entry).collect()
}

#[test]
fn every_direct_dependency_is_locked_at_its_declared_minimum() {
    let (declared, mut locked) = (declared(MANIFEST), locked(LOCK, "tower-comet"));
    assert!(declared.len() >= 10 && declared.contains_key("redis"), "{declared:?}");
    let mut wrong = Vec::new();
    for (name, minimum) in &declared {
        let locked = locked.remove(name).unwrap_or_else(|| "missing".to_owned());
        if locked != *minimum {
            wrong.push(format!(
                "{name}: declared {minimum}, locked {locked}: run `cargo update --manifest-path tests/minimal/Cargo.toml \
                 --precise {minimum} {name}`, or correct the requirement"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(locked.is_empty(), "locked, but not declared: {locked:?}");
}

#[test]
fn a_requirement_is_read_from_each_way_to_write_it() {
    let manifest = "[package]\nversion = \"9\"\n[dependencies]\n# A comment.\na = \"1.36\"\nb = { version = \"0.5\", optional = true }\n\
                    [dev-dependencies]\nc = \"2\"\n[target.'cfg(unix)'.dependencies]\nd = \"0.7.1\"\n\
                    [target.'cfg(unix)'.dev-dependencies]\ne = \"3\"\n";
    let expected = [("a", "1.36.0"), ("b", "0.5.0"), ("d", "0.7.1")];
    assert_eq!(declared(manifest), expected.map(|(name, version)| (name.to_owned(), version.to_owned())).into());
}

#[test]
fn a_version_is_read_from_the_entry_if_several_are_locked() {
    let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"a\"\nversion = \"2.0.0\"\n\n\
                [[package]]\nname = \"b\"\nversion = \"0.3.1\"\n\n\
                [[package]]\nname = \"ours\"\nversion = \"0.1.0\"\ndependencies = [\n \"a 1.0.0\",\n \"b\",\n]\n";
    let expected = [("a", "1.0.0"), ("b", "0.3.1")];
    assert_eq!(locked(lock, "ours"), expected.map(|(name, version)| (name.to_owned(), version.to_owned())).into());
}
