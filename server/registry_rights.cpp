// Who may do what. Mode bits as in a file system: the class of the owner, of the group or of all
// others decides, never a mix; uid 0 may do everything. Rights are asked before states. What the
// caller may not read does not tell whether it is there: a name in another user's namespace is
// denied in either case, an id is not found in either case.
#include <algorithm>

#include "server/registry_impl.hpp"

namespace shmstore::server {
namespace {

constexpr std::uint32_t kRoot = 0;

bool bits_allow(const Identity& who, std::uint32_t uid, std::uint32_t gid, std::uint16_t perms,
                Access access) {
  if (who.uid == kRoot) return true;
  unsigned bits = perms & 7U;
  if (who.uid == uid) {
    bits = (perms >> 6U) & 7U;
  } else if (who.gid == gid ||
             std::find(who.groups.begin(), who.groups.end(), gid) != who.groups.end()) {
    bits = (perms >> 3U) & 7U;
  }
  // A writable map can be read: writing takes both bits.
  const unsigned needed = writes(access) ? 6U : 4U;
  return (bits & needed) == needed;
}

}  // namespace

std::string label(const QualifiedName& name) {
  if (name.uid == QualifiedName::kOwn) return "'" + name.name + "'";
  return "'~" + std::to_string(name.uid) + "/" + name.name + "'";
}

std::string label(const Array& array) {
  if (array.entry != nullptr) return label(array.spec.name);
  return "array " + std::to_string(array.id.raw);
}

std::string named(const Identity& who) {
  std::string text = "pid " + std::to_string(who.pid);
  if (!who.command.empty()) text += " (" + who.command + ")";
  return text;
}

bool Registry::Impl::may(const Identity& who, const Array& array, Access access) {
  return bits_allow(who, array.uid, array.gid, array.spec.perms, access);
}

bool Registry::Impl::owns(const Identity& who, const Array& array) {
  return who.uid == kRoot || who.uid == array.uid;
}

bool Registry::Impl::foreign(const Identity& who, std::uint32_t ns_uid) {
  return who.uid != kRoot && who.uid != ns_uid;
}

bool Registry::may_read(const Identity& who, const EventRecord& event) const {
  return bits_allow(who, event.owner_uid, event.owner_gid, event.perms, Access::read);
}

QualifiedName Registry::Impl::resolve(const Session& session, const QualifiedName& name) const {
  return {name.uid == QualifiedName::kOwn ? session.identity.uid : name.uid, name.name};
}

Error Registry::Impl::denied(const QualifiedName& name) {
  return make_error(ErrorCode::permission_denied, "name: no right to " + label(name));
}

Error Registry::Impl::denied(const Array& array, std::string_view what) {
  return make_error(ErrorCode::permission_denied, std::string(what) + ": only uid " +
                                                      std::to_string(array.uid) +
                                                      " or root may do this to " + label(array));
}

// An id can be guessed: what is not the caller's to see is not there for it.
Error Registry::Impl::denied_by_id(const Identity& who, const Array& array, std::string_view what) {
  return may(who, array, Access::read) ? denied(array, what) : not_found(array.id);
}

Error Registry::Impl::denied_by_id(const Identity& who, const Array& array) {
  if (!may(who, array, Access::read) && !owns(who, array)) return not_found(array.id);
  return make_error(ErrorCode::permission_denied,
                    "id: no right to array " + std::to_string(array.id.raw));
}

Error Registry::Impl::not_found(const QualifiedName& name) {
  return make_error(
      ErrorCode::not_found,
      "name: there is no " + label(name) + "; an array that is not kept goes with its last holder");
}

Error Registry::Impl::not_found(ArrayId id) {
  return make_error(ErrorCode::not_found,
                    "id: there is no array " + std::to_string(id.raw) + " any more");
}

// The array that an admin request names, if the caller may open it with `access`.
Result<Array*> Registry::Impl::find_target(const Session& session, const Target& target,
                                           Access access) const {
  if (target.id.valid()) {
    Array* array = arrays.find(target.id);
    if (array == nullptr) return not_found(target.id);
    if (!may(session.identity, *array, access)) return denied_by_id(session.identity, *array);
    return array;
  }
  const QualifiedName name = resolve(session, target.name);
  const NameEntry* entry = find_entry(name);
  Array* array = entry == nullptr ? nullptr : entry->visible();
  if (array == nullptr) {
    return foreign(session.identity, name.uid) ? denied(name) : not_found(name);
  }
  if (!may(session.identity, *array, access)) return denied(name);
  return array;
}

// The same for what only the owner may do. Reading comes into it nowhere: an owner may delete an
// array that it cannot open. A stranger who may read is told whose it is; others only "no right".
Result<Array*> Registry::Impl::find_owned(const Session& session, const Target& target,
                                          std::string_view what) const {
  if (target.id.valid()) {
    Array* array = arrays.find(target.id);
    if (array == nullptr) return not_found(target.id);
    if (!owns(session.identity, *array)) return denied_by_id(session.identity, *array, what);
    if (array->state == State::dying) return not_found(target.id);
    return array;
  }
  const QualifiedName name = resolve(session, target.name);
  const NameEntry* entry = find_entry(name);
  Array* array = entry == nullptr ? nullptr : entry->visible();
  if (array == nullptr) {
    return foreign(session.identity, name.uid) ? denied(name) : not_found(name);
  }
  if (!owns(session.identity, *array)) {
    return may(session.identity, *array, Access::read) ? denied(*array, what) : denied(name);
  }
  return array;
}

}  // namespace shmstore::server
