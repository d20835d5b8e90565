// Prints the definitions of Karpenter's resources, of its kwok provider's included, as one List.
package main

import (
	"encoding/json"
	"log"
	"os"

	kwok "sigs.k8s.io/karpenter/kwok/apis"
	karpenter "sigs.k8s.io/karpenter/pkg/apis"
)

func main() {
	items := append(karpenter.CRDs, kwok.CRDs...)
	list := map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
	if err := json.NewEncoder(os.Stdout).Encode(list); err != nil {
		log.Fatal(err)
	}
}
