{{- define "claudejobs.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "claudejobs.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "claudejobs.labels" -}}
{{ include "claudejobs.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "claudejobs.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag }}{{ end }}
{{- end }}

{{- define "claudejobs.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "claudejobs.fullname" .) }}
{{- end }}

{{- define "claudejobs.claim" -}}
{{ .Values.database.persistence.existingClaim | default (printf "%s-state" (include "claudejobs.fullname" .)) }}
{{- end }}

{{- define "claudejobs.rules" -}}
- apiGroups: [claudecode.dev]
  resources: [claudecodejobs]
  verbs: [get, list, watch, create, patch, delete]  # creates and cancels those that come from queues
- apiGroups: [claudecode.dev]
  resources: [claudecodejobs/status]
  verbs: [patch]
- apiGroups: [claudecode.dev]
  resources: [claudecodequeues]
  verbs: [get, list, watch]
- apiGroups: [claudecode.dev]
  resources: [claudecodequeues/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]  # of spec.workspace.volumeClaimTemplate
{{- if .Values.warmPools.enabled }}
- apiGroups: [claudecode.dev]
  resources: [claudecodepools]
  verbs: [get, list, watch]
- apiGroups: [claudecode.dev]
  resources: [claudecodepools/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [patch]  # which gives a pod of a pool to a job
{{- end }}
{{- end }}

{{- define "claudejobs.gateway" -}}
{{ include "claudejobs.fullname" . }}-gateway
{{- end }}

{{- define "claudejobs.gateway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "claudejobs.gateway.labels" -}}
{{ include "claudejobs.gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "claudejobs.gateway.rules" -}}
- apiGroups: [claudecode.dev]
  resources: [claudecodejobs]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- end }}

{{- define "claudejobs.migrate.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-migrate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "claudejobs.dns" -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
  # CoreDNS may listen on an unprivileged port behind its Service; policies see the pod's port.
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
    - {protocol: UDP, port: 5353}
    - {protocol: TCP, port: 5353}
{{- end }}
