package platform

import "syscall"

// openFiles is nil, because Windows has no limit on open files.
func openFiles() *int64 { return nil }

// systemVersion is such as "Windows 10 Pro 22631", or empty if the registry does not say. Windows 11 has
// the name of Windows 10 there, and a build of 22000 or more.
func systemVersion() string {
	var key syscall.Handle
	path, _ := syscall.UTF16PtrFromString(`SOFTWARE\Microsoft\Windows NT\CurrentVersion`)
	if syscall.RegOpenKeyEx(syscall.HKEY_LOCAL_MACHINE, path, 0, syscall.KEY_READ|syscall.KEY_WOW64_64KEY, &key) != nil {
		return ""
	}
	defer syscall.RegCloseKey(key)
	name, build := registryString(key, "ProductName"), registryString(key, "CurrentBuildNumber")
	if name == "" || build == "" {
		return name
	}
	return name + " " + build
}

// registryString is a value of a key, or empty if there is none of up to 126 characters.
func registryString(key syscall.Handle, name string) string {
	var buffer [256]byte // UTF-16, little-endian, with a zero at its end
	size := uint32(len(buffer))
	value, _ := syscall.UTF16PtrFromString(name)
	var kind uint32
	if syscall.RegQueryValueEx(key, value, nil, &kind, &buffer[0], &size) != nil || kind != syscall.REG_SZ {
		return ""
	}
	var text []uint16
	for i := 0; i+1 < int(size); i += 2 {
		text = append(text, uint16(buffer[i])|uint16(buffer[i+1])<<8)
	}
	return syscall.UTF16ToString(text)
}
