// Command folder makes or removes the folder of one volume: what
// local-path-provisioner runs in a pod on the volume's node, in place of a
// shell script, so that its image needs no shell.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	path := flag.String("p", "", "the folder")
	action := flag.String("a", "", "create or delete")
	flag.String("s", "", "the volume's size, which nothing enforces")
	flag.String("m", "", "the volume's mode")
	flag.Parse()
	if err := run(*action, *path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(action, path string) error {
	if !filepath.IsAbs(path) || filepath.Dir(path) == "/" {
		return fmt.Errorf("%q is no folder of a volume", path)
	}
	switch action {
	case "create":
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		// Whatever the umask is: which user will write here is not known.
		return os.Chmod(path, 0o777)
	case "delete":
		return os.RemoveAll(path)
	}
	return fmt.Errorf("unknown action %q", action)
}
