//! Who the daemon runs as, and what systemd says of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::facts::NodeFacts;
use super::machine;
use crate::config::Sources;

/// A user, as far as device files care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) user: String,
    pub(super) uid: u32,
    pub(super) gids: Vec<u32>,
    pub(super) groups: Vec<String>,
}

/// The service as systemd knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// `active`, `inactive`, `failed`, `activating`, …
    pub(super) state: String,
    /// What the program ended with last.
    pub(super) exit_status: String,
}

/// The package's unit and user.
const SERVICE: &str = "edgecam";
/// Where systemd puts the service's secrets, readable for it alone.
const CREDENTIALS: &str = "/run/credentials/edgecam.service";

/// Who runs the daemon: the service's user where systemd knows the service and this is its configuration, else who asks.
pub(super) fn look(is_the_services: bool) -> impl FnOnce() -> (Identity, Option<Unit>) + Send + 'static {
    move || {
        let shown = if is_the_services { show() } else { None };
        let Some(shown) = shown else { return (own_identity(), None) };
        let value = |name: &str| shown.get(name).cloned().unwrap_or_default();
        let unit = Unit { state: value("ActiveState"), exit_status: value("ExecMainStatus") };
        let identity = identity_of(&value("User"), &value("SupplementaryGroups"));
        (identity.unwrap_or_else(own_identity), Some(unit))
    }
}

/// Secrets that root keeps are read where systemd has put them for the service, when that is who asks.
pub(super) fn with_credentials(sources: &Sources, is_a_service: bool) -> Sources {
    let mut sources = sources.clone();
    if is_a_service && fs::read_dir(CREDENTIALS).is_ok() {
        sources.environment.entry("CREDENTIALS_DIRECTORY".into()).or_insert_with(|| CREDENTIALS.into());
    }
    sources
}

fn own_uid() -> u32 {
    fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid())
}

pub(super) fn group_names() -> BTreeMap<u32, String> {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    entries(&groups).filter_map(|entry| Some((entry.get(2)?.parse().ok()?, entry[0].to_owned()))).collect()
}

impl Identity {
    /// By owner, group and others, as the kernel decides; access lists are not looked at.
    pub(super) fn may_use(&self, node: &NodeFacts) -> bool {
        const READ_AND_WRITE: u32 = 0o6;
        let shift = match node {
            _ if self.uid == 0 => return true,
            node if node.owner == self.uid => 6,
            node if self.gids.contains(&node.group) => 3,
            _ => 0,
        };
        (node.mode >> shift) & READ_AND_WRITE == READ_AND_WRITE
    }
}

/// What `systemctl show` tells of the service; `None`: there is no such service, or no systemd.
fn show() -> Option<BTreeMap<String, String>> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let wanted = "LoadState,ActiveState,ExecMainStatus,User,SupplementaryGroups";
    let arguments = ["show", SERVICE, "-p", wanted].map(str::to_owned);
    let text = machine::output("systemctl", &arguments)?;
    let properties: BTreeMap<String, String> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect();
    (properties.get("LoadState")? == "loaded").then_some(properties)
}

fn identity_of(user: &str, supplementary: &str) -> Option<Identity> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let group = fs::read_to_string("/etc/group").ok()?;
    known_identity(user, supplementary, &passwd, &group)
}

/// A user by the system's lists, with the groups that the unit adds.
fn known_identity(user: &str, supplementary: &str, passwd: &str, group: &str) -> Option<Identity> {
    let user = if user.is_empty() { "root" } else { user };
    let entry = entries(passwd).find(|entry| entry[0] == user)?;
    let (uid, primary) = (entry.get(2)?.parse().ok()?, entry.get(3)?.parse::<u32>().ok()?);
    let added: Vec<&str> = supplementary.split_whitespace().collect();
    let (mut gids, mut groups) = (Vec::new(), Vec::new());
    for entry in entries(group) {
        let (Some(gid), Some(members)) = (entry.get(2).and_then(|gid| gid.parse().ok()), entry.get(3)) else {
            continue;
        };
        if gid == primary || added.contains(&entry[0]) || members.split(',').any(|member| member == user) {
            gids.push(gid);
            groups.push(entry[0].to_owned());
        }
    }
    Some(Identity { user: user.to_owned(), uid, gids, groups })
}

fn own_identity() -> Identity {
    let uid = own_uid();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let own = entries(&passwd).find(|entry| entry.get(2) == Some(&uid.to_string().as_str()));
    let user = own.map_or_else(|| uid.to_string(), |entry| entry[0].to_owned());
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap_or_default();
    let numbers = field("Groups:").split_whitespace().chain(field("Gid:").split_whitespace().nth(1));
    let mut gids: Vec<u32> = numbers.filter_map(|gid| gid.parse().ok()).collect();
    gids.sort_unstable();
    gids.dedup();
    let names = group_names();
    let groups = gids.iter().map(|gid| names.get(gid).cloned().unwrap_or_else(|| gid.to_string())).collect();
    Identity { user, uid, gids, groups }
}

/// Lines of `/etc/passwd` and `/etc/group`, cut at their colons; the first part is never missing.
fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nedgecam:x:995:994:Camera:/var/lib/edgecam:/usr/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nvideo:x:44:pi\nrender:x:106:pi,edgecam\nedgecam:x:994:\n";

    #[test]
    fn a_service_has_its_users_groups_and_those_its_unit_adds() {
        let edgecam = known_identity("edgecam", "video", PASSWD, GROUP).unwrap();
        assert_eq!((edgecam.uid, edgecam.groups.join(" ").as_str()), (995, "video render edgecam"));
        assert_eq!(known_identity("edgecam", "", PASSWD, GROUP).unwrap().groups.join(" "), "render edgecam");
        assert_eq!(known_identity("", "", PASSWD, GROUP).unwrap().user, "root");
        assert_eq!(known_identity("nobody", "", PASSWD, GROUP), None);
    }

    #[test]
    fn a_device_file_is_open_to_owner_group_and_others_in_this_order() {
        let edgecam = known_identity("edgecam", "video", PASSWD, GROUP).unwrap();
        let node = |owner, group, mode| NodeFacts {
            path: "/dev/video0".into(),
            owner,
            group,
            group_name: String::new(),
            mode,
        };
        assert!(edgecam.may_use(&node(0, 44, 0o660)));
        assert!(!edgecam.may_use(&node(0, 44, 0o640)), "a camera is set up by writing");
        assert!(!edgecam.may_use(&node(0, 0, 0o660)));
        assert!(edgecam.may_use(&node(0, 0, 0o666)));
        assert!(!edgecam.may_use(&node(0, 44, 0o606)), "a group that is shut out stays out");
        assert!(known_identity("root", "", PASSWD, GROUP).unwrap().may_use(&node(5, 5, 0)));
    }
}
