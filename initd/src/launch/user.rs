//! Users and groups, as the container's own files know them.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Largest `/etc/passwd` or `/etc/group` that is read; a larger one is refused.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Most supplementary groups; the rest of a longer list is left out.
const GROUPS_MAX: usize = 256;

/// Who a program runs as, inside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// Resolves `name`, `uid`, `name:group` or `uid:gid` (empty: root) against the files below `root`.
pub(crate) fn resolve(root: BorrowedFd<'_>, user: &str) -> Result<User> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    look_up(user, &passwd, &group)
}

/// The reading of the two files; pure.
pub(crate) fn look_up(user: &str, passwd: &str, group: &str) -> Result<User> {
    let no_such = |what: &str, file: &str| Error::NoSuchUser {
        user: what.to_owned(),
        file: PathBuf::from(file),
    };
    let (who, with) = match user.split_once(':') {
        Some((who, with)) => (who, Some(with)),
        None => (user, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    let number = id(who);
    let entry = passwd.lines().filter_map(Entry::parse).find(|e| match number {
        Some(n) => e.uid == n,
        None => e.name == who,
    });
    let (uid, default_gid) = match (&entry, number) {
        (Some(e), _) => (e.uid, e.gid),
        (None, Some(n)) => (n, 0),
        (None, None) => return Err(no_such(user, "/etc/passwd")),
    };
    let gid = match with {
        None | Some("") => default_gid,
        Some(g) => match id(g) {
            Some(n) => n,
            None => group
                .lines()
                .filter_map(Group::parse)
                .find(|e| e.name == g)
                .map(|e| e.gid)
                .ok_or_else(|| no_such(user, "/etc/group"))?,
        },
    };
    let mut groups = Vec::new();
    if let (Some(e), None) = (&entry, with) {
        let member = |g: &Group<'_>| g.members.split(',').any(|m| m == e.name);
        for g in group.lines().filter_map(Group::parse).filter(member) {
            if groups.len() < GROUPS_MAX && !groups.contains(&g.gid) {
                groups.push(g.gid);
            }
        }
    }
    let home = entry.map(|e| e.home.to_owned()).filter(|h| h.starts_with('/'));
    Ok(User { uid, gid, groups, home })
}

/// Digits only: `+5`, ` 5` and what does not fit (or means "no id") are names, which will not be found.
fn id(s: &str) -> Option<u32> {
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    s.parse().ok().filter(|n| *n != u32::MAX)
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut f = line.split(':');
        let (name, _password) = (f.next()?, f.next()?);
        let (uid, gid) = (id(f.next()?)?, id(f.next()?)?);
        let (_gecos, home) = (f.next(), f.next().unwrap_or_default());
        Some(Self { name, uid, gid, home })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut f = line.split(':');
        let (name, _password) = (f.next()?, f.next()?);
        Some(Self { name, gid: id(f.next()?)?, members: f.next().unwrap_or_default() })
    }
}

/// A regular file below the root; empty when it is not there.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let fail = |op, e| Error::sys(op, format!("the image's /{path}"), e);
    // A FIFO or a device there must not make the shim wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let fd = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(e) => return Err(fail("open", e)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| fail("stat", e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(fail("read", Errno::INVAL));
    }
    let mut bytes = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        match rustix::io::read(&fd, &mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(fail("read", e)),
        }
        if bytes.len() > FILE_BYTES_MAX {
            return Err(fail("read", Errno::FBIG));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:,,,:/var/www:/bin/sh\nbad:x:-1:0::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:web,other\nvideo:x:44:other,web\n";

    fn ok(user: &str) -> User {
        look_up(user, PASSWD, GROUP).expect(user)
    }

    #[test]
    fn names_and_numbers() {
        let web = User { uid: 33, gid: 34, groups: vec![29, 44], home: Some("/var/www".into()) };
        assert_eq!(ok("web"), web);
        assert_eq!(ok("33"), web);
        assert_eq!(ok("web:audio"), User { gid: 29, groups: vec![], ..web.clone() });
        assert_eq!(ok("33:7"), User { gid: 7, groups: vec![], ..web });
        assert_eq!(ok("1000"), User { uid: 1000, ..User::default() });
        assert_eq!(ok(""), ok("0"));
        assert_eq!(ok("").home.as_deref(), Some("/root"));
    }

    #[test]
    fn what_is_no_user_is_refused() {
        for user in [
            "nobody",
            "web:nogroup",
            "-1",
            "+0",
            " 0",
            "0x0",
            "4294967295",
            "4294967296",
            "bad",
            "0:-1",
        ] {
            assert!(
                matches!(look_up(user, PASSWD, GROUP), Err(Error::NoSuchUser { .. })),
                "{user}"
            );
        }
        // An image without the files: numbers work, names do not.
        assert_eq!(
            look_up("7:8", "", "").expect("numbers"),
            User { uid: 7, gid: 8, ..User::default() }
        );
        assert!(look_up("root", "", "").is_err());
    }
}
