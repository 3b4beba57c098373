//! Adoption: an operator gives a machine in maintenance, or one that no flock knows, a name, labels and credentials of its own.
//!
//! What is given is checked as a whole before anything of it counts, then written beside `node.toml`, and, where the machine has a
//! state disk, there as well: the boot image brings back its own `node.toml` at the next boot, and [`install`] puts the
//! adopted one over it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::api::types::Adopt;
use crate::config::NodeFile;
use crate::error::Error;
use crate::flock::{Credentials, write_public, write_secret};
use crate::keys;

/// A file of a node's credentials.
struct File {
    name: &'static str,
    secret: bool,
    /// Not every flock has it.
    optional: bool,
}

const fn public(name: &'static str) -> File {
    File { name, secret: false, optional: false }
}

const fn secret(name: &'static str) -> File {
    File { name, secret: true, optional: false }
}

/// The files of a node's credentials.
const FILES: [File; 7] = [
    public("flock.json"),
    public("ca.pem"),
    public("operators"),
    public("node.pem"),
    secret("gossip.key"),
    secret("node.key"),
    // Where the gossip key was rotated: without it the machine would speak with a key that nobody hears any more.
    File { name: keys::FILE, secret: true, optional: true },
];
/// The largest of them, in bytes.
const FILE_BYTES_MAX: usize = 16 * 1024;
/// Where they are kept on the state disk.
const KEPT: &str = "adopted";

/// Where an adoption was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Beside `node.toml`, for this boot.
    pub dir: PathBuf,
    /// On the state disk, for later ones.
    pub disk: Option<PathBuf>,
}

impl Adopted {
    /// Where that is and how long it lasts, for people. `in_memory`: the machine keeps nothing over a boot.
    #[must_use]
    pub fn words(&self, in_memory: bool) -> String {
        match &self.disk {
            Some(dir) => format!("kept on its disk in {}", dir.display()),
            None if in_memory => format!(
                "kept in {}, which is in memory: it lasts until the next boot",
                self.dir.display()
            ),
            None => format!("kept in {}", self.dir.display()),
        }
    }
}

/// Checks what an operator gives and writes it. `flock`: the only one it may be into; `disk`: the state directory outlives a boot.
///
/// # Errors
/// What is wrong with it, or what could not be written; what counted before still counts then.
pub fn adopt(
    given: &Adopt,
    file: &NodeFile,
    file_path: &Path,
    flock: Option<&str>,
    disk: bool,
) -> Result<Adopted, Error> {
    let bad = |reason: String| Error::Malformed { what: "adoption", reason };
    let mut labels = file.labels.clone();
    labels.extend(given.labels.clone());
    let join = if given.join.is_empty() { file.join.clone() } else { given.join.clone() };
    let text = toml::to_string(&NodeFile {
        join,
        name: Some(given.name.clone()),
        maintenance: false,
        labels,
        ..file.clone()
    })
    .map_err(|e| bad(e.to_string()))?;
    NodeFile::parse(&text).map_err(bad)?;
    // Written where nobody looks, read back as the agent will, and only then put into place.
    let trial = file.run.join("adopting");
    write_all(&trial, &given.files, &text)?;
    let read = Credentials::open(&trial).and_then(|credentials| {
        crate::tls::server(&trial)?;
        keys::Ring::read(&trial.join(keys::FILE))?;
        Ok(credentials)
    });
    let removed = fs::remove_dir_all(&trial);
    let credentials = read?;
    removed.map_err(|e| Error::io("remove", &trial, e))?;
    if credentials.node != given.name {
        return Err(bad(format!(
            "the credentials are those of {}, not {}",
            credentials.node, given.name
        )));
    }
    if flock.is_some_and(|id| id != credentials.info.id) {
        return Err(bad("the credentials are of another flock".into()));
    }
    let kept = disk.then(|| file.state.join(KEPT));
    if let Some(dir) = &kept {
        write_all(dir, &given.files, &text)?;
    }
    write_to(&file.credentials, file_path, &given.files, &text)?;
    forget_former(&file.state)?;
    let dir = file_path.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(Adopted { dir, disk: kept })
}

/// Puts an adoption that is kept on the state disk over what the boot image brought. Whether there was one.
///
/// # Errors
/// It cannot be read or written.
pub fn install(file: &NodeFile, file_path: &Path) -> Result<bool, Error> {
    let kept = file.state.join(KEPT);
    let node_toml = kept.join("node.toml");
    if !node_toml.exists() {
        return Ok(false);
    }
    let text = crate::flock::read_text(&node_toml)?;
    NodeFile::parse(&text).map_err(|reason| Error::Config { path: node_toml.clone(), reason })?;
    write_to(&file.credentials, file_path, &files_of(&kept)?, &text)?;
    Ok(true)
}

fn write_all(dir: &Path, files: &BTreeMap<String, String>, text: &str) -> Result<(), Error> {
    write_to(dir, &dir.join("node.toml"), files, text)
}

/// The credentials first, `node.toml` last: it is what makes them count.
fn write_to(
    dir: &Path,
    file_path: &Path,
    files: &BTreeMap<String, String>,
    text: &str,
) -> Result<(), Error> {
    crate::flock::make_private_dir(dir)?;
    for File { name, secret, optional } in FILES {
        let path = dir.join(name);
        if optional && !files.contains_key(name) {
            // What a former name left there would count.
            remove(&path)?;
            continue;
        }
        let content =
            files.get(name).filter(|text| text.len() <= FILE_BYTES_MAX).ok_or_else(|| {
                let reason = format!("{name} is missing or has more than {FILE_BYTES_MAX} bytes");
                Error::Malformed { what: "adoption", reason }
            })?;
        if secret {
            write_secret(&path, content.as_bytes())?;
        } else {
            write_public(&path, content.as_bytes())?;
        }
    }
    write_public(file_path, text.as_bytes())
}

/// What the machine remembers under its former name would be taken for damage.
fn forget_former(state: &Path) -> Result<(), Error> {
    for name in ["gossip", "network.json"] {
        remove(&state.join(name))?;
    }
    Ok(())
}

/// A file or a directory, which need not be there.
fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// The files of credentials in a directory, as an operator sends them.
///
/// # Errors
/// One is missing or is no text.
pub fn files_of(dir: &Path) -> Result<BTreeMap<String, String>, Error> {
    let wanted = FILES.into_iter().filter(|file| !file.optional || dir.join(file.name).exists());
    wanted
        .map(|file| Ok((file.name.to_owned(), crate::flock::read_text(&dir.join(file.name))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flock::Bundle;

    #[test]
    fn an_adoption_counts_as_a_whole_or_not_at_all() {
        let dir = crate::testing::temp_dir("adopt");
        let bundle = Bundle::create(&dir.join("bundle"), "test", "alice").unwrap();
        let etc = dir.join("etc");
        bundle.issue_node("new", &etc).unwrap();
        bundle.issue_node("n7", &dir.join("n7")).unwrap();
        let file = NodeFile {
            maintenance: true,
            credentials: etc.clone(),
            state: dir.join("state"),
            run: dir.join("run"),
            ..NodeFile::default()
        };
        let path = etc.join("node.toml");
        fs::write(&path, toml::to_string(&file).unwrap()).unwrap();
        fs::create_dir_all(file.state.join("gossip")).unwrap();
        let given = Adopt {
            name: "n7".into(),
            join: Vec::new(),
            labels: [("rack".to_owned(), "r1".to_owned())].into(),
            files: files_of(&dir.join("n7")).unwrap(),
        };
        let id = bundle.info.id.as_str();

        let wrong = Adopt { name: "n8".into(), ..given.clone() };
        let said = adopt(&wrong, &file, &path, Some(id), true).unwrap_err().to_string();
        assert!(said.contains("those of n7, not n8"), "{said}");
        let mut rotated = given.clone();
        rotated.files.insert(keys::FILE.into(), "no ring".into());
        let said = adopt(&rotated, &file, &path, Some(id), true).unwrap_err().to_string();
        assert!(said.contains("gossip.ring") && !said.contains("no ring"), "{said}");
        let mut short = given.clone();
        short.files.remove("node.key");
        assert!(
            adopt(&short, &file, &path, Some(id), true)
                .unwrap_err()
                .to_string()
                .contains("node.key")
        );
        let said = adopt(&given, &file, &path, Some("00"), true).unwrap_err().to_string();
        assert!(said.contains("another flock"), "{said}");
        assert_eq!(Credentials::open(&etc).unwrap().node, "new", "nothing has changed");
        assert!(!install(&file, &path).unwrap());

        // The flock's key has been rotated.
        let ring = bundle.keys().unwrap().next([]).unwrap();
        ring.write(&dir.join("n7").join(keys::FILE)).unwrap();
        let given = Adopt { files: files_of(&dir.join("n7")).unwrap(), ..given };
        let written = adopt(&given, &file, &path, Some(id), true).unwrap();
        assert_eq!(written.disk, Some(file.state.join("adopted")));
        let now = NodeFile::open(&path).unwrap();
        assert!(!now.maintenance && now.name.as_deref() == Some("n7"));
        assert_eq!(now.labels["rack"], "r1");
        assert_eq!(Credentials::open(&etc).unwrap().node, "n7");
        assert!(!file.state.join("gossip").exists(), "that was another name's");

        // The next boot brings what the image has; the disk knows better.
        bundle.issue_node("new", &etc).unwrap();
        fs::write(&path, toml::to_string(&file).unwrap()).unwrap();
        assert!(install(&file, &path).unwrap());
        assert_eq!(Credentials::open(&etc).unwrap().node, "n7");
        assert_eq!(NodeFile::open(&path).unwrap().name.as_deref(), Some("n7"));
        use std::os::unix::fs::PermissionsExt as _;
        assert!(keys::Ring::read(&etc.join(keys::FILE)).unwrap() == Some(ring));
        let kept = ["node.key", "gossip.key", "gossip.ring"].map(|n| format!("state/adopted/{n}"));
        for secret in kept.into_iter().chain(["etc/node.key".into(), "etc/gossip.ring".into()]) {
            assert_eq!(
                fs::metadata(dir.join(&secret)).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
